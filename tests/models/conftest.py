"""What is compared with transformers needs torch; without it those tests are not collected."""

from importlib.util import find_spec

if any(find_spec(name) is None for name in ("torch", "transformers")):
    collect_ignore_glob = ["test_transformers_*.py"]
