"""`python -m recbole_perpeft.explain` of version 0.1.0: `recbole-perpeft explain`."""

import sys

from recbole_perpeft.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["explain", *sys.argv[1:]]))
