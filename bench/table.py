"""The poster's table: prefix-tuning, full fine-tuning and the frozen model, on a test set.

python bench/table.py                                   # the embedded model and sample data
python bench/table.py --quick                           # the same in minutes: one epoch, two seeds
python bench/table.py --model gpt2 --data e2e --out runs/gpt2 --json bench/results/gpt2.json

Trains by train.py with its recipes: prefix-tuning once a seed; fine-tuning once at each learning
rate, then, at the one with the best dev loss, once for each further seed. Test tables are decoded
by beam search and scored by all five metrics. Finished runs in --out are taken as they are, so a
second call goes on where the first ended, or decodes otherwise; what was said is kept there too.
"""

import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import tyro
from report import methods_table

from mingpt_prefix.batch import encode_example, encode_prompt
from mingpt_prefix.config import Decoding, SampleConfig
from mingpt_prefix.data import group_references, load_split
from mingpt_prefix.decoding import generate
from mingpt_prefix.describe import one_line
from mingpt_prefix.machine import machine_line
from mingpt_prefix.metrics import score
from mingpt_prefix.runs import RunFolder, read_run
from mingpt_prefix.tables import Table
from mingpt_prefix.tiny.slots import slot_errors
from mingpt_prefix.tokenizer import load_tokenizer
from mingpt_prefix.weights import load_model
from mingpt_prefix.writer import open_writer

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Args:
    model: str = "tiny"
    """as train.py's --model"""
    data: str = "sample"
    seeds: int = 3
    finetune_lrs: tuple[float, ...] = (5e-5, 2e-4, 5e-4, 1e-3)
    shots: tuple[int, ...] = (0, 3)
    """examples in front of the table when the frozen model is prompted"""
    beams: int = 5
    quick: bool = False
    """one epoch, two seeds, and fine-tuning at the recipe's learning rate alone"""
    out: Path = Path("runs/table")
    json: Path | None = None


@dataclass(frozen=True)
class Row:
    """One model on the test set. `slot_errors`: a share of all slots, on the sample data; seconds
    of training; parameters trained and numbers kept; bytes."""

    method: str
    seed: int
    scores: dict[str, float]
    slot_errors: float | None
    lr: float | None = None
    seconds: float | None = None
    trained: int = 0
    kept: int = 0
    peak_memory: int | None = None
    dev_loss: float | None = None


class TestSet:
    """The test tables, and the scores of sentences written for them."""

    def __init__(self, data: str, out: Path) -> None:
        groups = group_references(load_split([data], "test"))
        self.tables: list[Table] = [table for table, _ in groups]
        self.references = [texts for _, texts in groups]
        self.has_slots, self.out = data == "sample", out

    def score(self, name: str, said: Sequence[str]) -> dict:
        (self.out / f"{name}.txt").write_text("".join(f"{text}\n" for text in said))
        wrong = None
        if self.has_slots:
            pairs = zip(self.tables, said, strict=True)
            wrong = sum(len(slot_errors(table.slots, text)) for table, text in pairs)
            wrong /= sum(len(table.slots) for table in self.tables)
        return {"scores": score(said, self.references), "slot_errors": wrong}


def train(args: Args, test: TestSet, mode: str, seed: int, lr: float | None = None) -> Row:
    """One run of train.py, or the finished one in its folder, scored."""
    name = f"{mode}-{seed}-{lr or 'recipe'}"
    folder = args.out / name
    flags = ["--mode", mode, "--model", args.model, "--data", args.data, "--seed", str(seed)]
    flags += ["--lr", str(lr)] if lr else []
    flags += ["--epochs", "1"] if args.quick else []
    if not folder.exists():
        command = [sys.executable, str(ROOT / "train.py"), *flags, "--out", str(folder)]
        subprocess.run(command, check=True)
    content = read_run(folder)
    prefix_model = args.model if mode == "prefix" else None
    writer = open_writer(SampleConfig(run=folder, model=prefix_model))
    said = [str(text) for text in writer.write(test.tables, Decoding(beams=args.beams))]
    result = content["result"]
    return Row(
        method=mode,
        seed=seed,
        lr=content["config"]["lr"],
        seconds=result["seconds"],
        trained=result["trained"],
        kept=result["kept"],
        peak_memory=result["peak_memory"],
        dev_loss=min(
            line["dev_loss"] for line in RunFolder(folder).read_log() if "dev_loss" in line
        ),
        **test.score(f"{name}-beam{args.beams}", said),
    )


def prompted(args: Args, test: TestSet, shots: int, seed: int) -> Row:
    """The frozen model, each table behind `shots` examples of its own from the training set."""
    model, new_tokens = load_model(args.model), 100
    tokenizer = load_tokenizer(model.config.tokenizer)
    rng, train_set = random.Random(seed), load_split([args.data], "train")
    room = model.config.n_positions - new_tokens
    prompts = []
    for table in test.tables:
        prompt = list(encode_prompt(tokenizer, table))
        drawn = [encode_example(tokenizer, e).ids.tolist() for e in rng.sample(train_set, shots)]
        for ids in drawn:
            if len(ids) + len(prompt) <= room:
                prompt = ids + prompt
        prompts.append(prompt)
    new = generate(model, prompts, beams=args.beams, max_new_tokens=new_tokens, eos=tokenizer.eos)
    said = [one_line(tokenizer.decode(ids)) for ids in new]
    name = f"frozen, {shots} examples"
    return Row(name, seed, **test.score(f"frozen-{seed}-{shots}-beam{args.beams}", said))


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    args.out.mkdir(parents=True, exist_ok=True)
    test = TestSet(args.data, args.out)
    seeds = range(2 if args.quick else args.seeds)
    rows = [prompted(args, test, k, seed) for k in args.shots for seed in (seeds if k else (0,))]
    rows += [train(args, test, "prefix", seed) for seed in seeds]
    lrs = (None,) if args.quick else args.finetune_lrs
    tuned = [train(args, test, "finetune", 0, lr) for lr in lrs]
    best = min(tuned, key=lambda row: row.dev_loss)
    lr = None if args.quick else best.lr
    rows += tuned + [train(args, test, "finetune", seed, lr) for seed in seeds[1:]]
    record = {
        "command": "python bench/table.py " + " ".join(sys.argv[1:]),
        "date": date.today().isoformat(),
        "machine": machine_line(),
        "model": args.model,
        "data": args.data,
        "tables": len(test.tables),
        "beams": args.beams,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    if args.json is not None:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    print(methods_table(record))
    print(json.dumps(record))


if __name__ == "__main__":
    main()
