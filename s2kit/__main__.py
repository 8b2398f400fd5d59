"""``python -m s2kit``."""

import sys

from s2kit.cli import main

if __name__ == "__main__":
    sys.exit(main())
