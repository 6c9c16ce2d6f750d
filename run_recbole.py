"""Train and evaluate a recommender: `python run_recbole.py --model=PerPEFT --dataset=aspects` (see --help)."""

import sys

from recbole_perpeft.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
