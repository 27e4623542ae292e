"""``python -m flora_async.cli``."""

import sys

from flora_async.cli import main

if __name__ == "__main__":
    sys.exit(main())
