"""The command line of the scores."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from mingpt_prefix.cli.terminal import parse, run_script
from mingpt_prefix.metrics import scores
from mingpt_prefix.metrics.scores import METRICS, read_hypotheses, read_references, score


@dataclass(frozen=True)
class Args:
    hypotheses: Positional[Path]
    """one a line"""
    references: Positional[Path]
    """of one item on lines of their own, an empty line between items"""
    metrics: Annotated[tuple[str, ...], "names"] = METRICS
    json: bool = False
    """print one JSON object"""


def main(argv: Sequence[str] | None = None) -> int:
    """The whole program; returns the exit code."""

    def run() -> int:
        args = parse(Args, argv, "mingpt_prefix.metrics", scores.__doc__)
        found = score(
            read_hypotheses(args.hypotheses), read_references(args.references), args.metrics
        )
        if args.json:
            print(json.dumps(found))
            return 0
        for name, value in found.items():
            print(f"{name:<8}{value:.4f}")
        return 0

    return run_script("mingpt_prefix.metrics", run)


if __name__ == "__main__":
    sys.exit(main())
