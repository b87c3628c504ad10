"""A training step of prefix-tuning against one of full fine-tuning, ours and, where they are
installed (the `peers` extra), PEFT's and transformers', on the same batches in the same run.

python bench/speed.py                             # GPT-2 small; on a GPU medium too
python bench/speed.py --dtype bf16 --json bench/results/speed.json --picture speed.png

Random weights serve for timing; the lengths are those of real E2E examples. The methods take turns
round after round, so that a slow moment of the machine hits all of them: a round is a step, on a
GPU several, of which none waits for the one before. Where the time goes is from a pass of its own,
step by step and phase by phase, and without CUDA graphs.
"""

import dataclasses
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import record
import torch
import tyro
from arithmetic import matmul_rate, step_flops
from e2e_lengths import examples
from phases import shares
from report import speed_table
from timing import timed

from mingpt_prefix.batch import Encoded, batches
from mingpt_prefix.config import MODELS, TrainConfig
from mingpt_prefix.graphs import Captured, ahead
from mingpt_prefix.machine import peak_memory
from mingpt_prefix.model import GPT2
from mingpt_prefix.recipes import recipe
from mingpt_prefix.training import Trainer
from mingpt_prefix.weights import DTYPES, choose_attention, choose_device

POSTER_STEPS = 5 * 4_207  # 42,061 examples in batches of 10, 5 epochs
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}  # of losses, ours against theirs
METHODS = ("prefix", "fine-tuning", "PEFT prefix", "transformers fine-tuning")


@dataclass(frozen=True)
class Args:
    model: tuple[str, ...] = ()
    """shapes to time; gpt2, and on a GPU gpt2-medium too"""
    rounds: int = 7
    """rounds of each method that count, after two to warm up"""
    steps: int | None = None
    """of a round; 1, on a GPU 20"""
    batch_size: int = 10
    prefix_length: int = 5
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    attention: Literal["auto", "triton", "reference"] = "auto"
    quick: bool = False
    """three rounds, and no memory"""
    json: Path | None = None
    picture: Path | None = None
    memory_of: str | None = None
    """print the peak memory in bytes of two steps of one method, and nothing else"""


@dataclass(frozen=True)
class Method:
    """One way to take training steps; `run` takes one for each of its batches."""

    name: str
    mode: str
    run: Callable[[Sequence[Sequence[Encoded]]], None]
    optimizers: Sequence[torch.optim.Optimizer]
    captured: Captured | None = None

    def state_bytes(self) -> int:
        """Of the optimizer, once it has made a step."""
        states = (state for each in self.optimizers for state in each.state.values())
        tensors = (t for state in states for t in state.values() if torch.is_tensor(t))
        return sum(t.numel() * t.element_size() for t in tensors)


def configure(args: Args, model: str, mode: str) -> TrainConfig:
    device = choose_device(args.device)
    dtype = args.dtype if args.dtype != "auto" else "bf16" if device.type == "cuda" else "fp32"
    given = {"batch_size": args.batch_size, "micro_batch_size": args.batch_size}
    if mode == "prefix":
        given["prefix_length"] = args.prefix_length
    return TrainConfig(
        mode=mode,
        model=model,
        data=("random",),
        device=device.type,
        dtype=dtype,
        attention=choose_attention(args.attention, device, DTYPES[dtype]),
        max_steps=POSTER_STEPS,
        **recipe(mode, False, **given),
    )


def base(config: TrainConfig) -> GPT2:
    """Random weights as GPT-2 draws them, held as train.py holds them."""
    model = GPT2(MODELS[config.model], config.attention).initialize(0).to(config.device)
    return model.to(DTYPES[config.dtype]) if config.mode == "prefix" else model


def make_method(
    args: Args, model: str, name: str, data: Sequence[Encoded], graphs: bool = True
) -> Method:
    """Raises ImportError for a peer that is not installed."""
    mode = "prefix" if "prefix" in name else "finetune"
    config = configure(args, model, mode)
    if name in ("prefix", "fine-tuning"):
        trainer = Trainer(config, base(config), data, [], graphs=graphs)
        captured = None if trainer.graphs is None else trainer.graphs.captured
        return Method(name, mode, lambda b: run(trainer, b), trainer.optimizers, captured)
    import peers

    stepper = peers.Stepper(peers.build(base(config), config), config, POSTER_STEPS)
    return Method(name, mode, stepper.run, [stepper.optimizer])


def run(trainer: Trainer, batches: Sequence[Sequence[Encoded]]) -> None:
    """A step a batch, as `Trainer.steps` takes them."""
    lr = trainer.config.lr
    if trainer.graphs is None:
        for batch in batches:
            trainer.train_step(batch, lr)
        return
    for work in ahead(lambda batch: trainer.graphs.prepare(batch, lr), batches):
        trainer.graphs.begin(work, seed=0)


def check(args: Args, model: str, batch: Sequence[Encoded]) -> dict[str, float]:
    """Loss of `batch` by ours and the peers with the same weights, prefix encoder and no dropout.

    Raises AssertionError where they differ: then no time would mean anything.
    """
    import peers

    losses = {}
    for mode, ours, theirs in (
        ("prefix", "prefix", "PEFT prefix"),
        ("finetune", "fine-tuning", "transformers fine-tuning"),
    ):
        config = dataclasses.replace(configure(args, model, mode), dropout=0.0)
        own = base(config)
        peer = peers.build(own, config)
        losses[theirs] = float(
            peers.Stepper(peer, config, 1).loss(peers.pad(batch, own.device)).detach()
        )
        trainer = Trainer(config, own, batch, [])
        if mode == "prefix":
            trainer.trainable.load_state_dict(peers.prefix_weights(peer))
        losses[ours] = trainer.train_step(batch, 0.0)
        assert abs(losses[ours] - losses[theirs]) < TOLERANCE[config.dtype], losses
    return losses


def memory(args: Args, model: str, name: str) -> int | None:
    """Peak bytes of a few steps in a process of their own."""
    flags = ["--model", model, "--memory-of", name]
    for field in ("batch_size", "prefix_length", "device", "dtype", "attention"):
        flags += [f"--{field.replace('_', '-')}", str(getattr(args, field))]
    done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def measure(args: Args, model: str) -> dict:
    """All methods on one shape."""
    on_gpu, data = choose_device(args.device).type == "cuda", examples(MODELS[model].vocab_size)
    order, steps = batches(len(data), args.batch_size, seed=0), args.steps or (20 if on_gpu else 1)
    n_rounds = 2 + (3 if args.quick else args.rounds)
    drawn = [[[data[i] for i in next(order)] for _ in range(steps)] for _ in range(n_rounds)]
    methods, losses = [], {}
    try:
        losses = check(args, model, drawn[0][0])
        methods = [make_method(args, model, name, data) for name in METHODS]
    except ImportError as error:
        print(f"Without the peers ({error}): pip install 'mingpt-prefix[peers]'", file=sys.stderr)
        methods = [make_method(args, model, name, data) for name in METHODS[:2]]
    times: dict[str, list[float]] = {method.name: [] for method in methods}
    for method in methods if on_gpu else ():
        method.run([batch for round_ in drawn for batch in round_])  # each shape once
    for number, round_ in enumerate(drawn):
        for method in methods:
            seconds = timed(lambda m=method, b=round_: m.run(b))
            if number >= 2:
                times[method.name].append(seconds / steps)
    config = configure(args, model, "prefix")
    rate = matmul_rate(choose_device(args.device), DTYPES[config.dtype])
    counted = [batch for round_ in drawn[2:] for batch in round_]
    rows = []
    for method in methods:
        flops = [step_flops(MODELS[model], b, method.mode, args.prefix_length) for b in counted]
        tokens, spent = sum(len(e.ids) for b in counted for e in b), times[method.name]
        eager = method if method.captured is None else make_method(
            args, model, method.name, data, graphs=False
        )  # fmt: skip
        rows.append({
            "method": method.name,
            "seconds": spent,
            "tokens_per_second": tokens / sum(spent) / steps,
            "utilisation": sum(flops) / sum(spent) / steps / rate,
            "graphs": None if method.captured is None else dataclasses.asdict(method.captured),
            "shares": shares(lambda m=eager: m.run(counted[-1:])),
            "optimizer_bytes": method.state_bytes(),
            "peak_memory": None if args.quick else memory(args, model, method.name),
            "poster_minutes": POSTER_STEPS * statistics.median(spent) / 60,
            "flops": statistics.fmean(flops),
        })  # fmt: skip
    return {
        "model": model,
        "dtype": config.dtype,
        "attention": config.attention,
        "batch_size": args.batch_size,
        "prefix_length": args.prefix_length,
        "matmul_flops_per_second": rate,
        "losses": losses,
        "rows": rows,
    }


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    on_gpu = choose_device(args.device).type == "cuda"
    models = args.model or (("gpt2", "gpt2-medium") if on_gpu else ("gpt2",))
    if args.memory_of is not None:
        data = examples(MODELS[models[0]].vocab_size)
        method = make_method(args, models[0], args.memory_of, data)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()  # a peer is built out of a model of ours
        size = args.batch_size
        method.run([data[:size], data[size : 2 * size]])
        print(peak_memory(choose_device(args.device)))
        return
    result = {**record.begin("speed.py", choose_device(args.device)), "shapes": []}
    for model in models:
        result["shapes"].append(measure(args, model))
        record.save(result, args.json)  # what is there when a time limit ends it
    if args.picture is not None:
        from pictures import speed_chart

        speed_chart(result, args.picture)
    record.finish(result, speed_table(result), args.json)


if __name__ == "__main__":
    main()
