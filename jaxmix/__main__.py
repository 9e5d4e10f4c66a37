"""``python -m jaxmix``: the program ``jaxmix``."""

import sys

from jaxmix.converters.cli import main

if __name__ == "__main__":
    sys.exit(main())
