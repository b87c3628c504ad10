"""Sentences for tables, in a checkout: `python sample.py --help`; see `mingpt_prefix.cli.sample`.

`python sample.py --serve` is `mingpt-prefix serve`.
"""

import sys
from collections.abc import Sequence

from mingpt_prefix.cli import sample
from mingpt_prefix.serve import command as serve


def main(argv: Sequence[str] | None = None) -> int:
    """The whole program; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    program = serve if "--serve" in argv else sample
    return program.main([flag for flag in argv if flag != "--serve"], "sample.py")


if __name__ == "__main__":
    sys.exit(main())
