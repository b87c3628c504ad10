"""Training: one step for prefix-tuning, full fine-tuning and pretraining, and the loop around it.

    trainer = Trainer(config, model, train_set, dev_set)
    for progress in trainer.steps():
        ...

The modes differ in what is trained (the prefix encoder, or the model) and in nothing else. The loss
is the sum over target tokens divided by their number in the whole optimizer batch, however it is
cut into micro-batches. A run is a function of its settings: batches, dropout and the learning rate
of a step depend on (seed, step) alone, which makes resuming exact.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from mingpt_prefix.batch import Encoded, PrefixKV, batches
from mingpt_prefix.checkpoint import Checkpoint
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.distributed import ALONE, World
from mingpt_prefix.errors import CheckpointError, ConfigError, TrainingError
from mingpt_prefix.machine import changes, surroundings
from mingpt_prefix.model import GPT2
from mingpt_prefix.optim import learning_rate, make_optimizers
from mingpt_prefix.packed import pack
from mingpt_prefix.prefix import make_encoder
from mingpt_prefix.step import TrainStep

MAX_DEV = 1_000  # examples in one dev loss, evenly spaced: more say little more


@dataclass(frozen=True)
class Progress:
    """What one optimizer step came to; `dev_loss` where one was taken after it. Nats a token."""

    step: int
    loss: float
    lr: float
    tokens: int
    dev_loss: float | None = None
    is_best: bool = False

    def log_line(self) -> dict:
        line = {"step": self.step, "loss": self.loss, "lr": self.lr}
        return line if self.dev_loss is None else {**line, "dev_loss": self.dev_loss}


class Trainer:
    """One run: `model` and what is trained of it, its optimizer, and how far it has come.

    In prefix mode `model` is frozen, in whatever dtype it is held; otherwise its weights are
    trained in float32, with matrix products in `config.dtype` (autocast).

    Raises:
        ConfigError: when an example does not fit the model's positions.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: GPT2,
        train_set: Sequence[Encoded],
        dev_set: Sequence[Encoded],
        world: World = ALONE,
    ) -> None:
        self.config, self.model, self.train_set, self.world = config, model, train_set, world
        self.dev_set = dev_set[:: -(-len(dev_set) // MAX_DEV) or 1]
        self.step, self.best_loss, self.best_step = 0, math.inf, 0
        per_epoch = -(-len(train_set) // config.batch_size)
        self.total_steps = config.max_steps or math.ceil(config.epochs * per_epoch)
        self._choose_trainable()
        self._check_positions()
        encoder = self.trainable if config.mode == "prefix" else None
        self.gradients = TrainStep(config, model, encoder, world)
        self.optimizers = make_optimizers(self.trainable, config)

    @property
    def prefix_length(self) -> int | None:
        return self.config.prefix_length if self.config.mode == "prefix" else None

    def _choose_trainable(self) -> None:
        config, model = self.config, self.model
        model.requires_grad_(config.mode != "prefix")
        model.dropout = 0.0 if config.mode == "prefix" else config.dropout
        model.grad_checkpoint = config.grad_checkpoint
        self.trainable: nn.Module = model
        if config.mode == "prefix":
            self.trainable = make_encoder(config, model, self.train_set).to(model.device)
            pack(model, backward=True)

    @property
    def n_trained(self) -> int:
        """Parameters that are trained: the prefix encoder's, or the model's."""
        return sum(p.numel() for p in self.trainable.parameters())

    @property
    def n_kept(self) -> int:
        """Numbers that the run leaves behind: the folded prefix's, or the model's."""
        if self.prefix_length is None:
            return self.n_trained
        return self.prefix_length * 2 * self.model.config.n_layer * self.model.config.n_embd

    def _check_positions(self) -> None:
        rows, limit = self.prefix_length or 0, self.model.config.n_positions
        if self.config.mode == "pretrain":
            return  # its windows are cut to fit
        longest = max(len(e.ids) for e in (*self.train_set, *self.dev_set))
        if rows + longest > limit:
            raise ConfigError(
                f"{rows} prefix rows and the longest sequence of {longest} tokens pass the model's"
                f" limit of {limit} positions"
            )

    def steps(self) -> Iterator[Progress]:
        """Train to the end, from wherever the run is; yields after each step.

        Raises:
            TrainingError: when a loss or a gradient is not finite; the step is not yielded, and a
                training step's bad gradient changes nothing.
        """
        config = self.config
        order = batches(len(self.train_set), config.batch_size, config.seed, self.step)
        eval_every = math.ceil(self.total_steps / config.evals)
        while self.step < self.total_steps:
            examples = [self.train_set[i] for i in next(order)]
            lr = learning_rate(self.step, self.total_steps, config)
            loss = self.train_step(examples, lr)
            self.step += 1
            dev_loss, is_best = None, False
            if self.dev_set and (self.step % eval_every == 0 or self.step == self.total_steps):
                dev_loss = self.dev_loss()
                if not math.isfinite(dev_loss):
                    raise _not_finite(self.step, f"the dev loss is {dev_loss}")
                is_best = dev_loss < self.best_loss
                if is_best:
                    self.best_loss, self.best_step = dev_loss, self.step
            tokens = sum(len(e.ids) for e in examples)
            yield Progress(self.step, loss, lr, tokens, dev_loss, is_best)

    def train_step(self, examples: Sequence[Encoded], lr: float) -> float:
        """One optimizer step at the learning rate `lr`; returns its loss, in nats a token.

        Raises TrainingError as `steps`.
        """
        config = self.config
        self.model.train()
        self.trainable.train()
        # For dropout: ranks draw masks of their own.
        torch.manual_seed((config.seed * 1_000_003 + self.step) * self.world.size + self.world.rank)
        loss = self.gradients.backward(examples)
        norm = nn.utils.clip_grad_norm_(self.trainable.parameters(), config.clip)
        if not torch.isfinite(loss + norm):
            what = f"the loss is {float(loss)}, the gradient's norm {float(norm)}"
            raise _not_finite(self.step + 1, what)
        with record_function("optimizer"):
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        return float(loss)

    def dev_loss(self) -> float:
        """Mean loss over the targets of the dev set, in nats."""
        self.model.eval()
        return self.gradients.mean_loss(self.dev_set, self.folded_prefix())

    def folded_prefix(self) -> PrefixKV | None:
        """The prefix as plain rows; None in the other modes."""
        if self.config.mode != "prefix":
            return None
        with torch.no_grad():
            return self.trainable.eval()()

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """All that `restore` needs: tensors, and a JSON object."""
        tensors = {f"trained.{name}": p for name, p in self.trainable.named_parameters()}
        for number, optimizer in enumerate(self.optimizers):
            for index, slots in optimizer.state_dict()["state"].items():
                names = {key: f"optimizer.{number}.{index}.{key}" for key in slots}
                tensors.update({names[key]: value for key, value in slots.items()})
        state = {"best_loss": self.best_loss, "best_step": self.best_step}
        return tensors, {**state, "machine": surroundings(self.model.device, self.world.size)}

    def restore(self, checkpoint: Checkpoint) -> list[str]:
        """Go on from `checkpoint`; returns what of the machine is not as it was saved.

        Where that is nothing, the run ends at the bytes of one that was never interrupted.

        Raises:
            CheckpointError: when it is not of this run's shape.
        """
        slots: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.optimizers]
        try:
            own = dict(self.trainable.named_parameters())
            for name, tensor in checkpoint.tensors.items():
                kind, rest = name.split(".", 1)
                if kind == "trained":
                    parameter = own.pop(rest)
                    if tensor.shape != parameter.shape:
                        raise ValueError(f"{name} has shape {tuple(tensor.shape)}")
                    parameter.data.copy_(tensor)
                else:
                    number, index, key = rest.split(".")
                    slots[int(number)].setdefault(int(index), {})[key] = tensor
            if own:
                raise KeyError(next(iter(own)))
            for optimizer, state in zip(self.optimizers, slots, strict=True):
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict({"state": state, "param_groups": groups})
            self.best_loss = float(checkpoint.state["best_loss"])
            self.best_step = int(checkpoint.state["best_step"])
        except (LookupError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint is of another run: {error}") from None
        self.step = checkpoint.step
        now = surroundings(self.model.device, self.world.size)
        return changes(checkpoint.state.get("machine"), now)


def _not_finite(step: int, what: str) -> TrainingError:
    return TrainingError(f"step {step}: {what}: try a lower --lr, or look at the data")
