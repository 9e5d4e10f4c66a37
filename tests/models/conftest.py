"""Skips the comparisons with transformers if torch or transformers is not installed."""

from importlib.util import find_spec

if any(find_spec(name) is None for name in ("torch", "transformers")):
    collect_ignore_glob = ["test_transformers_*.py"]
