"""Skips the tests that need the original libraries if these are not installed."""

from importlib.util import find_spec

if any(find_spec(name) is None for name in ("torch", "peft", "diffusers", "lycoris")):
    collect_ignore_glob = ["test_live_*.py"]
