"""Makes the embedded model and its prefix anew; run from the root of the repository.

    python -m mingpt_prefix.tiny.make --english TEXT [TEXT ...] --work DIR

1. the vocabulary, from the mixture and the English text;
2. the base, pretrained on both, then on a mixture in which tables of one style follow each other,
   then on one whose domains are coined for their documents, each time with the last of the English
   text, and at last together with prefixes; it never sees the sample data set;
3. the prefix that is shipped with it, trained on the sample data set as `make train` does.

What a stage has left in DIR is used by a second call, so that it goes on where the first ended.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mingpt_prefix import tiny
from mingpt_prefix.checkpoints.pretrained import load_model, save_model
from mingpt_prefix.data.text import documents
from mingpt_prefix.data.tokenizer import END_OF_TEXT
from mingpt_prefix.tiny import make_steerable, make_vocab, mixture

PLAIN = ("--documents", "150000", "--seed", "0")
IN_RUNS = ("--documents", "80000", "--seed", "1", "--longest-run", "4")
COINED = ("--documents", "120000", "--seed", "2", "--longest-run", "6", "--coined", "0.75")
TAIL_BYTES = 8_000_000  # of English in the later stages, so that it is not forgotten
FIRST_STAGE = ("--max-steps", "3000")
SECOND_STAGE = ("--max-steps", "4000", "--lr", "2e-3", "--block-size", "384", "--batch-size", "6")
THIRD_STAGE = ("--max-steps", "8100", "--lr", "2e-3", "--block-size", "448", "--batch-size", "6")
LAST_STAGE = ("--steps", "4600")


def train(*flags: str) -> None:
    """Run train.py, which prints how far it is; a failure ends this script too."""
    subprocess.run([sys.executable, "train.py", *flags], check=True)


def write_tail(texts: Sequence[Path], out: Path) -> None:
    """Write the last documents of the last text, `TAIL_BYTES` of them at most."""
    kept, left = [], TAIL_BYTES
    for document in reversed(list(documents(texts[-1]))):
        block = f"{document}\n{END_OF_TEXT}\n"
        left -= len(block.encode())
        if left < 0:
            break
        kept.append(block)
    out.write_text("".join(reversed(kept)), encoding="utf-8")


def make(english: Sequence[Path], work: Path) -> None:
    """All of it."""
    work.mkdir(parents=True, exist_ok=True)
    names = ("mixture", "in-runs", "coined", "tail")
    mixed, in_runs, coined, tail = (work / f"{name}.txt" for name in names)
    stages = ("first", "second", "third", "steerable", "prefix")
    first, second, third, base, prefix = (work / name for name in stages)
    texts = [str(path) for path in english]
    if not tail.exists():
        mixture.main([*PLAIN, "--out", str(mixed)])
        mixture.main([*IN_RUNS, "--out", str(in_runs)])
        make_vocab.main(["--data", str(mixed), *texts])
        mixture.main([*COINED, "--out", str(coined)])  # its words are the vocabulary's
        write_tail(english, tail)
    pretrain = ("--mode", "pretrain", "--dtype", "bf16", "--evals", "16")
    if not first.exists():
        data = ("--data", *texts, str(mixed))
        train(*pretrain, "--model", "tiny", *data, *FIRST_STAGE, "--out", str(first))
    for start, end, mix, stage in (
        (first, second, in_runs, SECOND_STAGE),
        (second, third, coined, THIRD_STAGE),
    ):
        if not end.exists():
            data = ("--data", str(mix), str(tail))
            train(*pretrain, "--model", str(start / "model"), *data, *stage, "--out", str(end))
    if not base.exists():
        start = ("--model", str(third / "model"), "--english", str(tail))
        make_steerable.main([*start, *LAST_STAGE, "--out", str(base)])
    save_model(load_model(base, "cpu", "fp32"), tiny.MODEL, torch.float16)
    flags = ("--mode", "prefix", "--model", "tiny", "--device", "cpu")
    train(*flags, "--out", str(prefix))
    shutil.copyfile(prefix / "prefix.safetensors", tiny.PREFIX)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the embedded model and its prefix.")
    parser.add_argument("--english", type=Path, nargs="+", required=True, help=".txt or .txt.xz")
    parser.add_argument("--work", type=Path, required=True, help="a folder for what is in between")
    options = parser.parse_args(argv)
    make(options.english, options.work)


if __name__ == "__main__":
    main()
