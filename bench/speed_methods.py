"""The methods that bench/speed.py times: ours and the peers', on GPT-2 with random weights."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mingpt_prefix.accel.cuda_graphs import Captured
from mingpt_prefix.batch import Encoded
from mingpt_prefix.checkpoints.pretrained import DTYPES, choose_attention, choose_device
from mingpt_prefix.cli.recipes import recipe
from mingpt_prefix.config import MODELS, TrainConfig
from mingpt_prefix.evaluation.training_run import make_trainer
from mingpt_prefix.model import GPT2
from mingpt_prefix.trainer import Trainer

POSTER_STEPS = 5 * 4_207  # 42,061 examples in batches of 10, 5 epochs
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}  # of losses, ours against theirs
OURS, PEERS = ("prefix", "fine-tuning"), ("PEFT prefix", "transformers fine-tuning")


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
    """three rounds"""
    peers_keep_memory: bool = False
    """on a CPU, have the peers keep freed memory too, as train.py does and their scripts do not"""
    json: Path | None = None
    picture: Path | None = None


@dataclass(frozen=True)
class Method:
    """One way to take training steps; `run` takes one for each of its batches."""

    run: Callable[[Sequence[Sequence[Encoded]]], None]
    optimizers: Sequence[torch.optim.Optimizer]
    captured: Captured | None = None

    def state_bytes(self) -> int:
        """Of the optimizer, once it has made a step."""
        states = (state for each in self.optimizers for state in each.state.values())
        tensors = (t for state in states for t in state.values() if torch.is_tensor(t))
        return sum(t.numel() * t.element_size() for t in tensors)


def mode_of(name: str) -> str:
    """The mode of train.py that a method is, or a peer's of, by its name in OURS and PEERS."""
    return "prefix" if "prefix" in name else "finetune"


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
    config = configure(args, model, mode_of(name))
    if name in OURS:
        trainer = make_trainer(config, base(config), data, [], graphs=graphs)
        captured = getattr(trainer.stepper, "captured", None)
        return Method(lambda b: run(trainer, b), trainer.stepper.optimizers, captured)
    import peers

    stepper = peers.Stepper(peers.build(base(config), config), config, POSTER_STEPS)
    return Method(stepper.run, [stepper.optimizer])


def run(trainer: Trainer, batches: Sequence[Sequence[Encoded]]) -> None:
    """A step a batch, as `Trainer.steps` takes them."""
    stepper, lr = trainer.stepper, trainer.config.lr
    for work in stepper.prefetch(lambda batch: stepper.prepare(batch, lr), batches):
        stepper.begin(work, seed=0)


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
        trainer = make_trainer(config, own, batch, [])
        if mode == "prefix":
            trainer.trainable.load_state_dict(peers.prefix_weights(peer))
        stepper = trainer.stepper
        losses[ours], _ = stepper.begin(stepper.prepare(batch, 0.0), seed=0).read()
        assert abs(losses[ours] - losses[theirs]) < TOLERANCE[config.dtype], losses
    return losses
