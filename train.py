"""Training in a checkout: `python train.py --help`; see `mingpt_prefix.cli.train_command`."""

import sys
from functools import partial

from mingpt_prefix.cli import train_command

main = partial(train_command.main, prog="train.py")

if __name__ == "__main__":
    sys.exit(main())
