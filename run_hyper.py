"""Search over the settings of a model: `python run_hyper.py --model=PerPEFT --dataset=aspects` (see --help)."""

import sys

from recbole_perpeft.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
