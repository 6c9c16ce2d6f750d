"""`python -m recbole_perpeft.data.synthetic` of version 0.1.0: `recbole-perpeft aspects`."""

import sys

from recbole_perpeft.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["aspects", *sys.argv[1:]]))
