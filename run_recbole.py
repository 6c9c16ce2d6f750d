"""Train and evaluate a recommender: `python run_recbole.py --model=PerPEFT --dataset=aspects` (see --help)."""

import sys

from recbole_perpeft.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
