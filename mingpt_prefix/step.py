"""The gradients of one optimizer step: packed micro-batches, the head on targets, several ranks.

    step = TrainStep(config, model, adapters)
    loss = step.backward(examples)      # gradients are in the trained parameters

The loss is the sum over target tokens divided by their number in the whole optimizer batch, however
it is cut into micro-batches and ranks.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from mingpt_prefix.accel.buckets import of_few_sizes
from mingpt_prefix.accel.distributed import ALONE, World
from mingpt_prefix.accel.fsdp import shard
from mingpt_prefix.adaptation import NOTHING, Adaptation, Adapters
from mingpt_prefix.batch import Encoded, PackedBatch, PrefixKV, pack
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.errors import ConfigError
from mingpt_prefix.loss import summed_cross_entropy
from mingpt_prefix.model import GPT2


@dataclass(frozen=True)
class Progress:
    """What one optimizer step came to; `dev_loss` where one was taken after it. Nats a token.

    Without a dev set the last is the best.
    """

    step: int
    loss: float
    lr: float
    tokens: int
    dev_loss: float | None = None
    is_best: bool = False

    def log_line(self) -> dict:
        line = {"step": self.step, "loss": self.loss, "lr": self.lr}
        return line if self.dev_loss is None else {**line, "dev_loss": self.dev_loss}


class SummedLoss(nn.Module):
    """Cross-entropy in nats, summed over a batch's targets, by `model`."""

    def __init__(self, model: GPT2, autocasts: bool) -> None:
        super().__init__()
        self.model, self.autocasts = model, autocasts

    def forward(self, batch: PackedBatch, prefix: PrefixKV | None = None) -> Tensor:
        model = self.model
        casts = torch.autocast(model.device.type, torch.bfloat16) if self.autocasts else None
        with casts or nullcontext():
            hidden = model(batch.tokens, batch.positions, batch.layout, prefix)  # (T, C)
            logits = model.head(hidden.index_select(0, batch.target_index))  # (M, V)
        return summed_cross_entropy(logits, batch.target_tokens)


class TrainStep:
    """Losses and gradients of what is trained: `adapters`, or without any the model.

    A frozen model computes in the dtype it is held in; one that is trained is held in float32, and
    multiplies in `config.dtype`.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: GPT2,
        adapters: Adapters | None = None,
        world: World = ALONE,
    ) -> None:
        self.config, self.model, self.world = config, model, world
        self.rows = config.prefix_length if config.has_prefix else None
        self.summed_loss = SummedLoss(model, adapters is None and config.dtype == "bf16")
        self.adapters, self.trained_loss = adapters, self.summed_loss
        if world.shards:
            self.trained_loss = shard(self.summed_loss, model, world)
        elif world.size > 1 and adapters is None:
            self.trained_loss = DistributedDataParallel(self.summed_loss)
        elif world.size > 1:
            self.adapters = DistributedDataParallel(adapters)

    def backward(self, examples: Sequence[Encoded]) -> Tensor:
        """The mean loss of `examples`, whose gradients are added up; a scalar, in nats a token."""
        # Ranks' gradients are averaged by torch, where their sum is wanted.
        scale = self.world.size / sum(e.n_targets for e in examples)
        parts = self._parts(examples, self.config.micro_batch_size)
        packed = ((self._pack(part), weight * scale) for part, weight in parts)
        loss = self.add_gradients(packed, len(parts))
        return self.world.sum(loss) / self.world.size

    def add_gradients(
        self, batches: Iterable[tuple[PackedBatch, float | Tensor]], count: int
    ) -> Tensor:
        """The sum of the losses of `count` batches, each times its scale, and its gradients."""
        with record_function("forward"):
            learned = NOTHING if self.adapters is None else self.adapters()
        # Adapters run once: their gradients add up in leaves, and go through them once.
        given = learned.leaves()
        loss = torch.zeros((), device=self.model.device)
        for number, (batch, scale) in enumerate(batches, 1):
            with self._exchange_if(number == count), given.attached(self.model):
                with record_function("forward"):
                    part = self.trained_loss(batch, given.prefix) * scale
                with record_function("backward"):
                    part.backward()
            loss += part.detach()
        if self.adapters is not None:
            with record_function("backward"):
                gradients = [leaf.grad for leaf in given.tensors()]
                torch.autograd.backward(learned.tensors(), gradients)
        return loss

    def _parts(
        self, examples: Sequence[Encoded], size: int
    ) -> list[tuple[Sequence[Encoded], float]]:
        """This rank's share in parts of `size`, and what each counts.

        All ranks have as many, so that they meet: what a rank lacks counts for nothing.
        """
        own, largest = self.world.share(examples), -(-len(examples) // self.world.size)
        parts = [(own[start : start + size], 1.0) for start in range(0, len(own), size)]
        return parts + [(examples[:1], 0.0)] * (-(-largest // size) - len(parts))

    def _pack(self, examples: Sequence[Encoded]) -> PackedBatch:
        batch = pack(examples, self.rows, self.config.placement).to(self.model.device)
        in_16_bit_on_cpu = self.config.dtype == "bf16" and self.model.device.type == "cpu"
        return of_few_sizes(batch) if in_16_bit_on_cpu else batch

    def _exchange_if(self, is_last: bool) -> AbstractContextManager:
        """Ranks exchange gradients once a step, after the last micro-batch."""
        if self.world.shards:
            self.trained_loss.set_requires_gradient_sync(is_last)
        if is_last or not isinstance(self.trained_loss, DistributedDataParallel):
            return nullcontext()
        return self.trained_loss.no_sync()

    @torch.no_grad()
    def mean_loss(self, examples: Sequence[Encoded], given: Adaptation) -> float:
        """Over all targets of `examples`, in nats a token."""
        total = torch.zeros((), dtype=torch.float64)
        with given.attached(self.model):
            for part, weight in self._parts(examples, max(self.config.micro_batch_size, 32)):
                total += weight * self.summed_loss(self._pack(part), given.prefix).cpu()
        if self.world.shards:
            self.trained_loss.reshard()  # which backward does otherwise
        return float(self.world.sum(total)) / sum(e.n_targets for e in examples)


def check_positions(rows: int, examples: Sequence[Encoded], model: GPT2) -> None:
    """Raises ConfigError when the longest example behind `rows` of a prefix has no positions."""
    longest, limit = max(len(e.ids) for e in examples), model.config.n_positions
    if rows + longest > limit:
        raise ConfigError(
            f"{rows} prefix rows and the longest sequence of {longest} tokens pass the model's"
            f" limit of {limit} positions"
        )
