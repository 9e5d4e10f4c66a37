"""Skips the collection of tests that need torch and peft without these packages."""

from importlib.util import find_spec

if any(find_spec(name) is None for name in ("torch", "peft", "transformers")):
    collect_ignore_glob = ["test_live_*.py"]
