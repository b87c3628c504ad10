"""What is learned beside a frozen model: a prefix, LoRA, or both.

    adapters = Adapters(PrefixEncoder(model.config, 5), lora=None)
    adaptation = adapters()
    with adaptation.attached(model):
        hidden = model(tokens, positions, layout, adaptation.prefix)

`Adapters` are the modules that are trained; an `Adaptation` is their output, plain tensors.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.lora import Lora, LowRank
from mingpt_prefix.model import GPT2


@dataclass(frozen=True)
class Adaptation:
    """A prefix and low-rank changes, as plain tensors."""

    prefix: PrefixKV | None = None
    low_rank: LowRank | None = None

    def tensors(self) -> list[Tensor]:
        rows = [] if self.prefix is None else [self.prefix.kv]
        return rows + ([] if self.low_rank is None else self.low_rank.tensors())

    def attached(self, model: GPT2) -> AbstractContextManager[None]:
        """While attached, `model` computes with the low-rank changes, if there are any."""
        return nullcontext() if self.low_rank is None else self.low_rank.attached(model)

    def leaves(self) -> Adaptation:
        """The same values detached from their graph, as leaves that accumulate gradients."""
        prefix, low_rank = self.prefix, self.low_rank
        if prefix is not None:
            prefix = PrefixKV(_leaf(prefix.kv), prefix.starts)
        if low_rank is not None:
            factors = {name: (_leaf(a), _leaf(b)) for name, (a, b) in low_rank.factors.items()}
            low_rank = LowRank(factors, low_rank.scale, low_rank.dropout)
        return Adaptation(prefix, low_rank)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


NOTHING = Adaptation()


class Adapters(nn.Module):
    """The modules that are trained beside a frozen model; one of the two may be None."""

    def __init__(self, prefix: nn.Module | None, lora: Lora | None):
        super().__init__()
        self.prefix, self.lora = prefix, lora

    def forward(self) -> Adaptation:
        """Their current output, with its graph."""
        prefix = None if self.prefix is None else self.prefix()
        return Adaptation(prefix, None if self.lora is None else self.lora())

    @property
    def trainable(self) -> nn.Module:
        """The module whose parameter names a checkpoint uses: a lone prefix's have no prefix."""
        return self if self.lora is not None else self.prefix


@torch.no_grad()
def folded(adapters: Adapters | None) -> Adaptation:
    """What is saved and evaluated: no dropout, no graph."""
    return NOTHING if adapters is None else adapters.eval()()
