"""`python -m recbole_perpeft.data.convert.perpeft_states` of version 0.1.0: `recbole-perpeft cache`."""

import sys

from recbole_perpeft.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["cache", *sys.argv[1:]]))
