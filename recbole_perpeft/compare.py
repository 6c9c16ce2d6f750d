"""`python -m recbole_perpeft.compare` of version 0.1.0: `recbole-perpeft compare`."""

import sys

from recbole_perpeft.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
