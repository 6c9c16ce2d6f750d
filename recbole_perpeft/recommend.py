"""`python -m recbole_perpeft.recommend` of version 0.1.0: `recbole-perpeft recommend`."""

import sys

from recbole_perpeft.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["recommend", *sys.argv[1:]]))
