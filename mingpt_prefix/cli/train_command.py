"""Train a prefix, LoRA or all weights of a GPT-2 on tables; or pretrain one on plain text.
    mingpt-prefix train --mode prefix
    mingpt-prefix train --mode prefix+lora
    mingpt-prefix train --mode finetune --model gpt2 --data e2e
    mingpt-prefix train --mode pretrain --model gpt2 --data english.txt.xz
    mingpt-prefix train --config runs/prefix-tiny-1/run.json --seed 1
    mingpt-prefix train --resume runs/prefix-tiny-1
    torchrun --nproc-per-node 2 -m mingpt_prefix train --mode finetune

Ctrl-C saves the run and says how to continue it. docs/reference.md shows the recipes.
"""

from collections.abc import Sequence

from mingpt_prefix.cli.terminal import parse, run_script
from mingpt_prefix.cli.train_args import TrainArgs


def main(argv: Sequence[str] | None = None, prog: str = "mingpt-prefix train") -> int:
    """The whole run; returns the exit code."""

    def run() -> int:
        args = parse(TrainArgs, argv, prog, __doc__)
        # Imported here, for it brings torch, which takes seconds: help and bad flags come before.
        from mingpt_prefix.cli.train import start

        return start(args)

    return run_script(prog, run)
