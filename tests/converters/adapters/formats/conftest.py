"""What needs the libraries themselves is not collected without them."""

from importlib.util import find_spec

if any(find_spec(name) is None for name in ("torch", "peft", "diffusers", "lycoris")):
    collect_ignore_glob = ["test_live_*.py"]
