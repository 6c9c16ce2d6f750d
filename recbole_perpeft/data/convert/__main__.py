"""`python -m recbole_perpeft.data.convert` of version 0.1.0: `recbole-perpeft convert`."""

import sys

from recbole_perpeft.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
