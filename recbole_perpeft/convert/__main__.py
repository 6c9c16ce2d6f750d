import sys

from recbole_perpeft.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
