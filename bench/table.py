"""Prefix-tuning beside full fine-tuning and the frozen model, on a test set.

python bench/table.py                                 # the embedded model and sample data
python bench/table.py --data e2e --seeds 1 --quick    # the real E2E data, one epoch

Trains by train.py with its recipes, prefix-tuning once a seed, fine-tuning at each learning rate
and then, at the one with the best dev loss, once a seed. Test tables are decoded greedily.
"""

import dataclasses
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import tyro
from report import methods_table

from mingpt_prefix.config import Decoding, SampleConfig
from mingpt_prefix.data import group_references, load_split
from mingpt_prefix.metrics import bleu
from mingpt_prefix.runs import RunFolder, read_run
from mingpt_prefix.tables import Table
from mingpt_prefix.tasks import describe
from mingpt_prefix.tiny.slots import slot_errors
from mingpt_prefix.tokenizer import load_tokenizer
from mingpt_prefix.weights import load_model
from mingpt_prefix.writer import open_writer

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Args:
    model: str = "tiny"
    data: str = "sample"
    seeds: int = 3
    finetune_seeds: int = 3
    finetune_lrs: tuple[float, ...] = (5e-5, 2e-4, 5e-4, 1e-3)
    quick: bool = False
    """one epoch each, and fine-tuning at the recipe's learning rate alone"""
    out: Path = Path("runs/table")
    json: Path | None = None


@dataclass(frozen=True)
class Row:
    """One run's scores on the test set; `slot_errors` is a share of all slots, on the sample."""

    method: str
    seed: int
    lr: float
    bleu: float
    slot_errors: float | None
    seconds: float
    dev_loss: float | None


class TestSet:
    """The test tables, and the scores of sentences written for them."""

    def __init__(self, data: str) -> None:
        groups = group_references(load_split([data], "test"))
        self.tables: list[Table] = [table for table, _ in groups]
        self.references = [texts for _, texts in groups]
        self.has_slots = data == "sample"

    def score(self, said: Sequence[str]) -> dict[str, float | None]:
        wrong = None
        if self.has_slots:
            pairs = zip(self.tables, said, strict=True)
            wrong = sum(len(slot_errors(table.slots, text)) for table, text in pairs)
            wrong /= sum(len(table.slots) for table in self.tables)
        return {"bleu": bleu(said, self.references), "slot_errors": wrong}


def train(args: Args, test: TestSet, mode: str, seed: int, lr: float | None = None) -> Row:
    """One run of train.py, or the finished one in its folder, scored."""
    folder = args.out / f"{mode}-{seed}-{lr or 'recipe'}"
    flags = ["--mode", mode, "--model", args.model, "--data", args.data, "--seed", str(seed)]
    flags += ["--lr", str(lr)] if lr else []
    flags += ["--epochs", "1"] if args.quick else []
    seconds_file = folder.with_name(f"{folder.name}.seconds")
    if not folder.exists():
        started = time.monotonic()
        command = [sys.executable, str(ROOT / "train.py"), *flags, "--out", str(folder)]
        subprocess.run(command, check=True)
        seconds_file.write_text(f"{time.monotonic() - started:.1f}")
    content = read_run(folder)
    prefix_model = args.model if mode == "prefix" else None
    writer = open_writer(SampleConfig(run=folder, model=prefix_model))
    scores = test.score([str(text) for text in writer.write(test.tables, Decoding())])
    return Row(
        method=mode,
        seed=seed,
        lr=content["config"]["lr"],
        seconds=float(seconds_file.read_text()),
        dev_loss=min(
            line["dev_loss"] for line in RunFolder(folder).read_log() if "dev_loss" in line
        ),
        **scores,
    )


def frozen(args: Args, test: TestSet) -> Row:
    model = load_model(args.model)
    started = time.monotonic()
    said = describe(model, load_tokenizer(model.config.tokenizer), test.tables)
    seconds = time.monotonic() - started
    return Row("frozen", 0, 0.0, seconds=seconds, dev_loss=None, **test.score(said))


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    args.out.mkdir(parents=True, exist_ok=True)
    test = TestSet(args.data)
    rows = [frozen(args, test)]
    rows += [train(args, test, "prefix", seed) for seed in range(args.seeds)]
    lrs = (None,) if args.quick else args.finetune_lrs
    tuned = [train(args, test, "finetune", 0, lr) for lr in lrs]
    best = min(tuned, key=lambda row: row.dev_loss)
    lr = None if args.quick else best.lr
    rows += tuned + [
        train(args, test, "finetune", seed, lr) for seed in range(1, args.finetune_seeds)
    ]
    record = {
        "command": "python bench/table.py " + " ".join(sys.argv[1:]),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "model": args.model,
        "data": args.data,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    if args.json is not None:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    print(methods_table(record))
    print(json.dumps(record))


if __name__ == "__main__":
    main()
