"""`python -m minimind`: see `minimind.cli`."""

import sys

from minimind.cli import main

if __name__ == "__main__":
    sys.exit(main())
