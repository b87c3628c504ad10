"""The methods that bench/speed.py times: ours and the peers', on GPT-2 with random weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from mingpt_prefix.accel.cuda_graphs import Captured, why_not_graphs
from mingpt_prefix.accel.distributed import ALONE
from mingpt_prefix.adapters.learned import make_encoder
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
EAGER = tuple(f"{name}, eager" for name in OURS)  # where the steps of OURS are CUDA graphs
COMPILED = f"{PEERS[1]}, compiled"


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
    """One way to take training steps; `run` takes one for each of its batches, `loss` a single one,
    whose loss it returns."""

    run: Callable[[Sequence[Sequence[Encoded]]], None]
    loss: Callable[[Sequence[Encoded]], float]
    optimizers: Sequence[torch.optim.Optimizer]
    captured: Captured | None = None

    def state_bytes(self) -> int:
        """Of the optimizer, once it has made a step."""
        states = (state for each in self.optimizers for state in each.state.values())
        tensors = (t for state in states for t in state.values() if torch.is_tensor(t))
        return sum(t.numel() * t.element_size() for t in tensors)


def mode_of(name: str) -> str:
    """The mode of train.py that a method is, or a peer's of."""
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


def methods(args: Args, model: str) -> tuple[str, ...]:
    """Those to time by turns; the peers where they are installed."""
    has_graphs = why_not_graphs(configure(args, model, "prefix"), ALONE) is None
    has_peers = all(find_spec(name) for name in ("peft", "transformers"))
    return OURS + EAGER * has_graphs + PEERS * has_peers


def base(config: TrainConfig) -> GPT2:
    """Random weights as GPT-2 draws them, held as train.py holds them."""
    model = GPT2(MODELS[config.model], config.attention).initialize(0).to(config.device)
    return model.to(DTYPES[config.dtype]) if config.mode == "prefix" else model


def make_method(
    args: Args, model: str, name: str, data: Sequence[Encoded], dropout: float | None = None
) -> Method:
    """Equal weights for all methods of a mode. Raises ImportError for a peer that is not there."""
    config = configure(args, model, mode_of(name))
    config = config if dropout is None else replace(config, dropout=dropout)
    own = base(config)
    if name in OURS + EAGER:
        trainer = make_trainer(config, own, data, [], graphs=name in OURS)
        captured = getattr(trainer.stepper, "captured", None)
        optimizers = trainer.stepper.optimizers
        return Method(lambda b: run(trainer, b), lambda b: step(trainer, b), optimizers, captured)
    from methods import peers

    encoder = make_encoder(config, own) if config.mode == "prefix" else None
    peer = peers.build(own, config, encoder)
    stepper = peers.Stepper(peer, config, POSTER_STEPS, compiled=name == COMPILED)
    return Method(
        stepper.run, lambda b: float(stepper.step(stepper.padded(b))), [stepper.optimizer]
    )


def run(trainer: Trainer, batches: Sequence[Sequence[Encoded]]) -> None:
    """A step a batch, as `Trainer.steps` takes them."""
    stepper, lr = trainer.stepper, trainer.config.lr
    for work in stepper.prefetch(lambda batch: stepper.prepare(batch, lr), batches):
        stepper.begin(work, seed=0)


def step(trainer: Trainer, batch: Sequence[Encoded]) -> float:
    """A single one, waited for; returns its loss."""
    stepper = trainer.stepper
    return stepper.begin(stepper.prepare(batch, trainer.config.lr), seed=0).read()[0]


def losses(args: Args, model: str, name: str, batch: Sequence[Encoded]) -> list[float]:
    """Of two steps of a method on one batch, without dropout, which padding moves."""
    method = make_method(args, model, name, batch, dropout=0.0)
    return [method.loss(batch) for _ in range(2)]
