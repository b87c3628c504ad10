"""Makes the embedded model and its prefix anew; run from the root of the repository.

    python -m mingpt_prefix.tiny.make --english TEXT [TEXT ...] --work DIR

1. the vocabulary, from the mixture and the English text;
2. the base, pretrained on both; it never sees the sample data set;
3. the prefix that is shipped with it, trained on the sample data set as `make train` does.

The first stage's files in DIR are kept, so that a second call goes on where the first ended.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mingpt_prefix.tiny import make_vocab, mixture
from mingpt_prefix.weights import load_model, save_model

HERE = Path(__file__).parent
MIXTURE_DRAWS = "150000"


def train(*flags: str) -> None:
    """Run train.py, which prints how far it is; a failure ends this script too."""
    subprocess.run([sys.executable, "train.py", *flags], check=True)


def make(english: Sequence[Path], work: Path, steps: int) -> None:
    """All three stages."""
    work.mkdir(parents=True, exist_ok=True)
    mixed, base, prefix = work / "mixture.txt", work / "base", work / "prefix"
    if not mixed.exists():
        mixture.main(["--documents", MIXTURE_DRAWS, "--seed", "0", "--out", str(mixed)])
        make_vocab.main(["--data", str(mixed), *map(str, english)])
    if not base.exists():
        texts = [*map(str, english), str(mixed)]
        settings = ["--dtype", "bf16", "--max-steps", str(steps), "--out", str(base)]
        train("--mode", "pretrain", "--model", "tiny", "--data", *texts, *settings)
    save_model(load_model(base / "model", "cpu", "fp32"), HERE / "model", torch.float16)
    train("--mode", "prefix", "--model", "tiny", "--device", "cpu", "--out", str(prefix))
    shutil.copyfile(prefix / "prefix.safetensors", HERE / "prefix.safetensors")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the embedded model and its prefix.")
    parser.add_argument("--english", type=Path, nargs="+", required=True, help=".txt or .txt.xz")
    parser.add_argument("--work", type=Path, required=True, help="a folder for what is in between")
    parser.add_argument("--steps", type=int, default=6_600, help="of pretraining")
    options = parser.parse_args(argv)
    make(options.english, options.work, options.steps)


if __name__ == "__main__":
    main()
