"""Low-rank changes of a frozen model's weights (LoRA: Hu et al. 2021), as plain tensors.

low_rank = LowRank({"attn.c_attn": (a, b)}, scale=2.0)
hidden = model(tokens, positions, layout, low_rank=low_rank)     # beside the weights
fold(model, low_rank)                                            # or added to them, once
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt_prefix.config import ModelConfig

if TYPE_CHECKING:
    from mingpt_prefix.model import GPT2


@dataclass(frozen=True)
class Change:
    """That of one weight W (in, out): a (in, r), b (r, out). Section 4.1, eq. 3, in this layout:
    x W + scale * (x a) b; `dropout` acts on the x of the second term, in training."""

    a: Tensor
    b: Tensor
    scale: float
    dropout: float

    def added_to(self, y: Tensor, x: Tensor, is_training: bool) -> Tensor:
        """y (T, out), the product of x (T, in) and the weight as it was, changed."""
        low = F.dropout(x, self.dropout, is_training) @ self.a.to(x.dtype)
        return torch.addmm(y, low, self.b.to(x.dtype), alpha=self.scale)


@dataclass(frozen=True)
class LowRank:
    """Changes of the same weights in all L layers.

    factors: by the weight's name in a block, a (L, in, r) and b (L, r, out).
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    scale: float
    dropout: float = 0.0

    def tensors(self) -> list[Tensor]:
        return [factor for pair in self.factors.values() for factor in pair]

    def layers(self) -> list[dict[str, Change]]:
        """The changes of each layer, by the weights' names in a block."""
        found: list[dict[str, Change]] = []
        for target, (a, b) in self.factors.items():
            found = found or [{} for _ in range(len(a))]
            for layer, pair in zip(found, zip(a.unbind(), b.unbind(), strict=True), strict=True):
                layer[target] = Change(*pair, self.scale, self.dropout)
        return found

    def digest(self) -> str:
        """SHA-256 over the factors and the scale."""
        digest = hashlib.sha256(repr(float(self.scale)).encode())
        for target, pair in sorted(self.factors.items()):
            for factor in pair:
                digest.update(f"{target} {tuple(factor.shape)}\n".encode())
                digest.update(factor.detach().to("cpu", torch.float32).contiguous().numpy())
        return digest.hexdigest()


def weight_sizes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of each weight of a block that can be changed, by its name there."""
    width = config.n_embd
    return {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }


@torch.no_grad()
def fold(model: GPT2, low_rank: LowRank) -> GPT2:
    """Add the changes to the model's weights, in place and in their dtype: decoding then costs what
    it costs without. The model's fingerprint becomes `folded_fingerprint`."""
    for block, changes in zip(model.h, low_rank.layers(), strict=True):
        for target, change in changes.items():
            weight = block.get_submodule(target).weight
            a, b = change.a.to(weight), change.b.to(weight)
            weight.addmm_(a, b, alpha=change.scale)
    model.fingerprint = folded_fingerprint(model.fingerprint, low_rank)
    return model


def folded_fingerprint(base: str, low_rank: LowRank) -> str:
    """Of a model with these changes, whose own weights have the fingerprint `base`: a prefix that
    was trained together with them fits no model without."""
    return hashlib.sha256(f"{base} {low_rank.digest()}".encode()).hexdigest()
