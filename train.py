"""The training run: `python train.py --help`; see `mingpt_prefix.cli.train`."""

import sys

from mingpt_prefix.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
