"""Prefixes trained in one run (train.py --sweep) against one after the other: time and memory.

python bench/sweep.py                                  # the embedded model, and GPT-2 small's shape
python bench/sweep.py --model tiny --members 1 4 --rounds 20 --json bench/results/sweep.json

A round is a step of every member, and takes turns with a step of a run of its own. The embedded
model has its recipe and sample data, the others the poster's recipe, random weights, and examples
of E2E's lengths.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from measure.e2e_lengths import examples
from measure.record import Record
from measure.timing import timed
from reports.speed import sweep_table

from mingpt_prefix.accel.environment import keep_freed_memory, peak_memory
from mingpt_prefix.batch import Encoded
from mingpt_prefix.checkpoints.pretrained import DTYPES, choose_attention, choose_device, load_base
from mingpt_prefix.cli.recipes import recipe
from mingpt_prefix.config import MODELS, TrainConfig
from mingpt_prefix.evaluation.tasks import load_task
from mingpt_prefix.evaluation.training_run import make_trainer
from mingpt_prefix.model import GPT2
from mingpt_prefix.sweep.together import member_trainer, rounds
from mingpt_prefix.trainer import Trainer

WARM_UP = 2  # rounds that do not count


@dataclass(frozen=True)
class Args:
    model: tuple[str, ...] = ("tiny", "gpt2")
    members: tuple[int, ...] = (1, 4, 16, 64)
    rounds: int = 10
    """that count, after two to warm up"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    attention: Literal["auto", "triton", "reference"] = "auto"
    json: Path | None = None


def configure(args: Args, model: str) -> TrainConfig:
    device = choose_device(args.device)
    dtype = args.dtype if args.dtype != "auto" else "bf16" if device.type == "cuda" else "fp32"
    return TrainConfig(
        mode="prefix",
        model=model,
        data=("sample",),
        device=device.type,
        dtype=dtype,
        attention=choose_attention(args.attention, device, DTYPES[dtype]),
        **recipe("prefix", model == "tiny", max_steps=1_000_000),
    )


def base_and_data(config: TrainConfig) -> tuple[GPT2, list[Encoded]]:
    shape = MODELS[config.model]
    if config.model == "tiny":
        return load_base(config), load_task(config, shape).train_set
    model = GPT2(shape, config.attention).initialize(0).to(config.device, DTYPES[config.dtype])
    return model, examples(shape.vocab_size)


def tokens_of(trainer: Trainer) -> float:
    """In a step, on average."""
    total = sum(len(e.ids) for e in trainer.train_set)
    return trainer.config.batch_size * total / len(trainer.train_set)


def measured(args: Args, own: Trainer, members: list[Trainer]) -> dict:
    """Seconds of a round of these members, and of a step of a run of its own."""
    if own.model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    alone: Iterator = own.steps()
    together: Iterator = rounds(members)
    pairs = [
        (timed(lambda: next(alone)), timed(lambda: next(together)))
        for _ in range(WARM_UP + args.rounds)
    ]
    step, round_ = (statistics.median(each) for each in zip(*pairs[WARM_UP:], strict=True))
    count = len(members)
    return {
        "model": own.config.model,
        "members": count,
        "step_seconds": step,
        "round_seconds": round_,
        "tokens_per_second": count * tokens_of(own) / round_,
        "times_as_fast": count * step / round_,
        "peak_memory": peak_memory(own.model.device),
    }


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    device = choose_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    record = Record("sweep.py", device, args.json, sweeps=[])
    for name in args.model:
        with record.part(name):
            config = configure(args, name)
            model, data = base_and_data(config)
            for count in sorted(args.members):  # a process's peak only rises
                with record.part(f"{name}, {count} members"):
                    own = make_trainer(config, model, data, ())
                    configs = [replace(config, seed=seed) for seed in range(count)]
                    members = [member_trainer(each, model, data, ()) for each in configs]
                    record["sweeps"].append(measured(args, own, members))
    record.finish(sweep_table)


if __name__ == "__main__":
    main()
