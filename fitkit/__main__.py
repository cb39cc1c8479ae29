"""`python -m fitkit`: the command line."""

import sys

from fitkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
