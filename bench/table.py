"""The poster's table: prefix-tuning, LoRA, full fine-tuning and the frozen model, on a test set.

python bench/table.py                                   # the embedded model and sample data
python bench/table.py --quick                           # the same in minutes: one epoch, two seeds
python bench/table.py --model gpt2 --data e2e --out runs/gpt2 --json bench/results/gpt2.json
python bench/table.py --data e2e --out runs/e2e --methods prefix finetune --seeds 1 --epochs 0.2

Trains by train.py with its recipes: prefixes of all seeds in one run (--sweep), LoRA, and a prefix
with LoRA once a seed; fine-tuning once at each learning rate, then, at the one with the best dev
loss, once for each further seed. Test tables are decoded by beam search and scored by all five
metrics. Finished runs in --out are reused, so a second call continues where the first ended, or
decodes with other settings; --out also keeps the outputs.
"""

import dataclasses
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import tyro
from measure.record import Record
from quality.experiment import KeptTestSet, Row, scored, swept, trained
from reports.quality import methods_table

from mingpt_prefix.checkpoints.pretrained import choose_device, load_model
from mingpt_prefix.config import Split
from mingpt_prefix.data.datasets import load_split
from mingpt_prefix.data.encoding import encode_example, encode_prompt
from mingpt_prefix.data.tables import Example, Table
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.evaluation.table_to_text import one_line
from mingpt_prefix.generation.decoding import generate

Method = Literal["frozen", "prefix", "lora", "prefix+lora", "finetune"]


@dataclass(frozen=True)
class Args:
    model: str = "tiny"
    """as train.py's --model"""
    data: str = "sample"
    split: Split = "test"
    """test-known: the sample's second test set, whose names are made of training's words"""
    methods: tuple[Method, ...] = get_args(Method)
    epochs: float | None = None
    """in place of the recipes'"""
    seeds: int = 3
    finetune_seeds: int | None = None
    """at the best learning rate; as --seeds if not given"""
    finetune_lrs: tuple[float, ...] = (5e-5, 2e-4, 5e-4, 1e-3)
    shots: tuple[int, ...] = (0, 3)
    """examples in front of the table when the frozen model is prompted"""
    beams: int = 5
    attention: Literal["auto", "triton", "reference"] = "auto"
    """as train.py's and sample.py's --attention"""
    quick: bool = False
    """one epoch, two seeds of prefix-tuning and fine-tuning, one of everything else; fine-tuning
    only at the recipe's learning rate"""
    out: Path = Path("runs/table")
    json: Path | None = None


def swept_seeds(args: Args, test: KeptTestSet, seeds: Sequence[int]) -> Iterator[Row]:
    """Prefix-tuning with all seeds in one run."""
    flags, ending = told(args, "prefix")
    folder = test.out / f"prefix-{len(seeds)}-seeds{ending}"
    members = swept(folder, args.model, *flags, seed=seeds)
    for member in members:
        yield scored(test, member, args.model, args.beams, args.attention, len(members))


def train(args: Args, test: KeptTestSet, method: str, seed: int, lr: float | None = None) -> Row:
    flags, ending = told(args, method)
    flags += ["--seed", str(seed), *(["--lr", str(lr)] if lr else [])]
    name = f"{method}-{seed}-{lr or 'recipe'}{ending}"
    return trained(test, name, args.model, args.beams, *flags, attention=args.attention)


def told(args: Args, method: str) -> tuple[list[str], str]:
    """The flags of a method's runs, and what their folders' names end with."""
    flags = ["--mode", method, "--data", args.data, "--attention", args.attention]
    ending = f"-{args.attention}" if args.attention != "auto" else ""
    if (epochs := 1.0 if args.quick else args.epochs) is not None:
        flags += ["--epochs", str(epochs)]
        ending += f"-{epochs:g}-epochs"
    return flags, ending


def prompted(args: Args, test: KeptTestSet, seeds: Sequence[int]) -> Iterator[Row]:
    """The frozen model, each table behind examples of its own from the training set."""
    model, new_tokens = load_model(args.model, attention=args.attention), 100
    tokenizer = load_tokenizer(model.config.tokenizer)
    train_set = load_split([args.data], "train")
    room = model.config.n_positions - new_tokens

    def prompt(table: Table, drawn: Sequence[Example]) -> list[int]:
        ids = encode_prompt(tokenizer, table)
        for example in drawn:
            more = encode_example(tokenizer, example).ids.tolist()
            if len(more) + len(ids) <= room:
                ids = more + ids
        return ids

    for shots in args.shots:
        for seed in seeds if shots else (0,):
            rng = random.Random(seed)
            prompts = [prompt(table, rng.sample(train_set, shots)) for table in test.tables]
            new = generate(
                model, prompts, beams=args.beams, max_new_tokens=new_tokens, eos=tokenizer.eos
            )
            said = [one_line(tokenizer.decode(ids)) for ids in new]
            scores = test.keep(f"frozen-{seed}-{shots}-beam{args.beams}", said)
            yield Row(f"frozen, {shots} examples", seed, **scores)


def finetuned(args: Args, test: KeptTestSet, seeds: Sequence[int]) -> Iterator[Row]:
    """Fine-tuning at each learning rate with seed 0, and at the best of them with the others."""
    if args.quick:
        yield from (train(args, test, "finetune", seed) for seed in seeds)
        return
    tried: list[Row] = []
    for lr in args.finetune_lrs:
        tried.append(train(args, test, "finetune", 0, lr))
        yield tried[-1]
    best = min(tried, key=lambda row: row.dev_loss)
    for seed in range(1, len(seeds) if args.finetune_seeds is None else args.finetune_seeds):
        yield train(args, test, "finetune", seed, best.lr)


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    test = KeptTestSet(args.data, args.out, args.split)
    seeds = range(2 if args.quick else args.seeds)
    about = {"model": args.model, "data": args.data, "split": args.split}
    about |= {"tables": len(test.tables)}
    about |= {"beams": args.beams, "rows": []}
    record = Record("table.py", choose_device("auto"), args.json, **about)
    for method in args.methods:
        own = seeds if method in ("prefix", "finetune") or not args.quick else seeds[:1]
        with record.part(method):
            if method == "frozen":
                rows = prompted(args, test, own)
            elif method == "finetune":
                rows = finetuned(args, test, own)
            elif method == "prefix":
                rows = swept_seeds(args, test, own)
            else:
                rows = (train(args, test, method, seed) for seed in own)
            for row in rows:
                record["rows"].append(dataclasses.asdict(row))
                record.save()
    record.finish(methods_table)


if __name__ == "__main__":
    main()
