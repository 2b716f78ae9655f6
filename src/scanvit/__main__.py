"""``python -m scanvit``."""

import sys

from scanvit.cli import main

if __name__ == "__main__":
    sys.exit(main())
