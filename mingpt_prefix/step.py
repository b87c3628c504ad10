"""The gradients of one optimizer step: packed micro-batches, the head on targets, several ranks.

    step = TrainStep(config, model, encoder)
    loss = step.backward(examples)      # gradients are in the trained parameters

The loss is the sum over target tokens divided by their number in the whole optimizer batch, however
it is cut into micro-batches and ranks.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from mingpt_prefix.batch import Encoded, PackedBatch, PrefixKV, pack
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.distributed import ALONE, World
from mingpt_prefix.model import GPT2


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
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, batch.target_tokens, reduction="sum")


class TrainStep:
    """Losses and gradients of what is trained: of `encoder`'s weights, or without one the model's.

    A frozen model computes in the dtype it is held in; one that is trained is held in float32, and
    multiplies in `config.dtype`.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: GPT2,
        encoder: nn.Module | None = None,
        world: World = ALONE,
    ) -> None:
        self.config, self.model, self.world = config, model, world
        self.rows = None if encoder is None else config.prefix_length
        self.summed_loss = SummedLoss(model, encoder is None and config.dtype == "bf16")
        self.encoder, self.trained_loss = encoder, self.summed_loss
        if world.size > 1 and encoder is None:
            self.trained_loss = DistributedDataParallel(self.summed_loss)
        elif world.size > 1:
            self.encoder = DistributedDataParallel(encoder)

    def backward(self, examples: Sequence[Encoded]) -> Tensor:
        """The mean loss of `examples`, whose gradients are added up; a scalar, in nats a token."""
        own = self.world.share(examples)
        # A rank without a share takes part with what counts for nothing.
        weight, own = (1.0, own) if own else (0.0, examples[:1])
        # Ranks' gradients are averaged by torch, where their sum is wanted.
        scale = weight * self.world.size / sum(e.n_targets for e in examples)
        size = self.config.micro_batch_size
        parts = [own[start : start + size] for start in range(0, len(own), size)]
        loss = self.add_gradients(((self._pack(part), scale) for part in parts), len(parts))
        return self.world.sum(loss) / self.world.size

    def add_gradients(
        self, batches: Iterable[tuple[PackedBatch, float | Tensor]], count: int
    ) -> Tensor:
        """The sum of the losses of `count` batches, each times its scale, and its gradients."""
        with record_function("forward"):
            prefix, rows = (None if self.encoder is None else self.encoder()), None
        if prefix is not None:
            # The encoder runs once: its rows' gradient adds up in a leaf, and goes through it once.
            rows = PrefixKV(prefix.kv.detach().requires_grad_(), prefix.starts)
        loss = torch.zeros((), device=self.model.device)
        for number, (batch, scale) in enumerate(batches, 1):
            with self._exchange_if(number == count):
                with record_function("forward"):
                    part = self.trained_loss(batch, rows) * scale
                with record_function("backward"):
                    part.backward()
            loss += part.detach()
        if prefix is not None:
            with record_function("backward"):
                prefix.kv.backward(rows.kv.grad)
        return loss

    def _pack(self, examples: Sequence[Encoded]) -> PackedBatch:
        return pack(examples, self.rows, self.config.placement).to(self.model.device)

    def _exchange_if(self, is_last: bool) -> AbstractContextManager:
        """Ranks exchange gradients once a step, after the last micro-batch."""
        if is_last or not isinstance(self.trained_loss, DistributedDataParallel):
            return nullcontext()
        return self.trained_loss.no_sync()

    @torch.no_grad()
    def mean_loss(self, examples: Sequence[Encoded], prefix: PrefixKV | None) -> float:
        """Over all targets of `examples`, in nats a token."""
        size, own = max(self.config.micro_batch_size, 32), self.world.share(examples)
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, len(own), size):
            batch = self._pack(own[start : start + size])
            total += self.summed_loss(batch, prefix).cpu()
        return float(self.world.sum(total)) / sum(e.n_targets for e in examples)
