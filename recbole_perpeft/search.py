"""`python -m recbole_perpeft.search` of version 0.1.0: `recbole-perpeft search`."""

import sys

from recbole_perpeft.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
