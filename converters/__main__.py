"""``python -m jaxmix.converters``: the same program as ``jaxmix``."""

import sys

from jaxmix.converters.cli import main

if __name__ == "__main__":
    sys.exit(main())
