"""Compare recommenders under one protocol: `python run_compare.py --models=SASRec,PerPEFT` (see --help)."""

import sys

from recbole_perpeft.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
