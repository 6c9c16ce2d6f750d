"""`python -m recbole_perpeft` is `recbole-perpeft`."""

import sys

from recbole_perpeft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
