"""One optimizer step: packed micro-batches, the head on targets only, clipping, the optimizers.

    gradients = TrainStep(config, model, adapters)
    stepper = EagerStep(gradients, config)
    loss, norm = stepper.begin(stepper.prepare(examples, lr), seed).read()

The loss is the sum over target tokens divided by their number in the whole optimizer batch, however
the batch is split into micro-batches. `accel.distributed_step` also splits it among processes, and
`accel.cuda_graphs` runs whole steps as CUDA graphs.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from mingpt_prefix.adaptation import NOTHING, Adaptation, Adapters
from mingpt_prefix.batch import Encoded, PackedBatch, PrefixKV, pack
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.errors import TrainingError
from mingpt_prefix.loss import summed_cross_entropy
from mingpt_prefix.model import GPT2
from mingpt_prefix.optim import make_optimizers, set_learning_rate

ADVICE = "try a lower --lr, or look at the data"
In, Out = TypeVar("In"), TypeVar("Out")


@dataclass(frozen=True)
class PendingStep:
    """A step that was launched on the device."""

    values: Tensor  # loss and gradient norm, once `arrived`
    arrived: torch.cuda.Event | None = None

    def read(self) -> tuple[float, float]:
        """The loss in nats per token, and the gradient's norm; waits for both."""
        if self.arrived is not None:
            self.arrived.synchronize()
        loss, norm = self.values.tolist()
        return loss, norm


@dataclass(eq=False)
class Progress:
    """An optimizer step that was launched, with the `dev_loss` after it if one was computed.

    Without a dev set, the last step counts as the best.
    """

    step: int
    lr: float
    tokens: int
    pending: PendingStep
    dev_loss: float | None = None
    is_best: bool = False

    @cached_property
    def _read(self) -> tuple[float, float]:
        loss, norm = self.pending.read()
        if not math.isfinite(loss + norm):
            what = f"the loss is {loss}, the gradient's norm {norm}"
            raise TrainingError(f"step {self.step}: {what}: {ADVICE}")
        return loss, norm

    @property
    def loss(self) -> float:
        """In nats per token; waits for it. Raises TrainingError if the loss or the gradient is not
        finite."""
        return self._read[0]

    @property
    def grad_norm(self) -> float:
        """Before clipping; waits and raises like `loss`."""
        return self._read[1]

    def log_line(self) -> dict:
        line = {"step": self.step, "loss": self.loss, "lr": self.lr, "tokens": self.tokens}
        line["grad_norm"] = self.grad_norm
        return line if self.dev_loss is None else {**line, "dev_loss": self.dev_loss}


class Stepper(Protocol):
    """Runs optimizer steps. `lag`: how many may be launched before an earlier one's loss is read.

    A step whose loss or gradient is not finite changes no parameter, and neither do the steps
    launched after it until its loss is read.
    """

    lag: int
    optimizers: list[torch.optim.Optimizer]

    def prepare(self, examples: Sequence[Encoded], lr: float) -> object:
        """Prepare the input of `begin`; may run on any thread."""

    def prefetch(self, make: Callable[[In], Out], inputs: Iterable[In]) -> Iterator[Out]:
        """make(x) for each input, in order; some may be computed ahead."""

    def begin(self, work: object, seed: int) -> PendingStep:
        """Launch a step, with dropout drawn by `seed`."""

    def forget(self) -> None:
        """Drop what was cached: parameters and optimizers may have new tensors."""


class SummedLoss(nn.Module):
    """The model's cross-entropy in nats, summed over a batch's targets."""

    def __init__(self, model: GPT2, autocasts: bool) -> None:
        super().__init__()
        self.model, self.autocasts = model, autocasts

    def forward(self, batch: PackedBatch, prefix: PrefixKV | None = None) -> Tensor:
        model = self.model
        with torch.autocast(model.device.type, torch.bfloat16, enabled=self.autocasts):
            inputs = (batch.tokens, batch.positions, batch.layout, prefix, batch.target_index)
            logits = model.head(model(*inputs))  # (M, V)
        return summed_cross_entropy(logits, batch.target_tokens)


class TrainStep:
    """Losses and gradients of what is trained: the `adapters`, or the model if there are none.

    A frozen model computes in the dtype of its weights; a trained one keeps float32 weights, and
    multiplies in `config.dtype`. `accel.distributed_step` overrides what several processes do
    differently.
    """

    pad: Callable[[PackedBatch], PackedBatch] | None = None  # pads packed batches, if set

    def __init__(self, config: TrainConfig, model: GPT2, adapters: Adapters | None = None) -> None:
        self.config, self.model = config, model
        self.rows = config.prefix_length if config.has_prefix else None
        self.summed_loss = SummedLoss(model, adapters is None and config.dtype == "bf16")
        # FSDP wraps `adapters`; the modules themselves are needed too.
        self.own_adapters = self.adapters = adapters
        self.trained_loss: nn.Module = self.summed_loss
        self.trainable: nn.Module = model if adapters is None else adapters.trainable

    def backward(self, examples: Sequence[Encoded]) -> Tensor:
        """The mean loss of `examples` in nats per token, a scalar; accumulates its gradients."""
        scale = 1 / sum(e.n_targets for e in examples)
        parts = self._parts(examples, self.config.micro_batch_size)
        packed = ((self._pack(part), weight * scale) for part, weight in parts)
        return self._mean(self.add_gradients(packed, len(parts)))

    def add_gradients(
        self, batches: Iterable[tuple[PackedBatch, float | Tensor]], count: int
    ) -> Tensor:
        """The sum of the scaled losses of `count` batches; accumulates the gradients."""
        with record_function("forward"):
            learned = NOTHING if self.adapters is None else self.adapters()
        # Adapters run once: gradients accumulate in leaves, then flow back through them once.
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

    def clip(self) -> Tensor:
        """Clip the gradients to the norm `config.clip`; returns their norm before."""
        return nn.utils.clip_grad_norm_(self.trainable.parameters(), self.config.clip)

    @torch.no_grad()
    def mean_loss(self, examples: Sequence[Encoded], given: Adaptation) -> float:
        """The loss over all targets of `examples`, in nats per token."""
        total = torch.zeros((), dtype=torch.float64)
        with given.attached(self.model):
            for part, weight in self._parts(examples, max(self.config.micro_batch_size, 32)):
                total += weight * self.summed_loss(self._pack(part), given.prefix).cpu()
        return float(self._mean(total)) / sum(e.n_targets for e in examples)

    def seed(self, step: int) -> int:
        """The seed of the dropout of 0-based `step`."""
        return self.config.seed * 1_000_003 + step

    def _parts(
        self, examples: Sequence[Encoded], size: int
    ) -> list[tuple[Sequence[Encoded], float]]:
        """This process's share, in parts of `size`, and the weight of each part's loss."""
        return [(examples[start : start + size], 1.0) for start in range(0, len(examples), size)]

    def _mean(self, loss: Tensor) -> Tensor:
        """The mean over the processes of their sums of weighted losses."""
        return loss

    def _exchange_if(self, is_last: bool) -> AbstractContextManager:
        """Processes exchange gradients once per step, after the last micro-batch."""
        return nullcontext()

    def _pack(self, examples: Sequence[Encoded]) -> PackedBatch:
        batch = pack(examples, self.rows, self.config.placement).to(self.model.device)
        return batch if self.pad is None else self.pad(batch)


class EagerStep:
    """Runs each step immediately, operation by operation."""

    lag = 0

    def __init__(self, gradients: TrainStep, config: TrainConfig) -> None:
        self.gradients = gradients
        self.optimizers = make_optimizers(gradients.trainable, config)

    def prepare(self, examples: Sequence[Encoded], lr: float) -> tuple[Sequence[Encoded], float]:
        return examples, lr

    def prefetch(self, make: Callable[[In], Out], inputs: Iterable[In]) -> Iterator[Out]:
        return map(make, inputs)

    def begin(self, work: tuple[Sequence[Encoded], float], seed: int) -> PendingStep:
        examples, lr = work
        self.gradients.model.train()
        self.gradients.trainable.train()
        torch.manual_seed(seed)
        loss = self.gradients.backward(examples)
        norm = self.gradients.clip()
        if torch.isfinite(loss + norm):
            with record_function("optimizer"):
                for optimizer in self.optimizers:
                    set_learning_rate(optimizer, lr)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
        return PendingStep(torch.stack([loss.double(), norm.double()]))

    def forget(self) -> None:
        pass
