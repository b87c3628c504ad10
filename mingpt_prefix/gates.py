"""Gated prefixes: how much of a prefix each head takes in, learned beside the rows.

A head attends to the prefix's keys as ever, and takes g times their values. LLaMA-Adapter (Zhang
et al. 2023, section 3.2) gates the attention to a prefix instead, which no stored row can say; a
factor of the values can be stored as values, and a gated prefix is kept as any other.
"""

import torch
from torch import Tensor, nn

from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.config import ModelConfig

_PACE = 0.1  # of a gate beside rows: 0.03 and 0.3 end at a dev loss within 0.005 of its own


class GatedPrefix(nn.Module):
    """The rows of `encoder`, the values of each layer and head times its gate, which begins at 1.

    `gate` (L, H), in float32, is what is learned: a gate is 1 + 0.1 * gate.
    """

    def __init__(self, encoder: nn.Module, config: ModelConfig):
        super().__init__()
        self.encoder = encoder
        self.gate = nn.Parameter(torch.zeros(config.n_layer, config.n_head))

    def forward(self) -> PrefixKV:
        """The rows with the gates folded in, and their graph."""
        prefix = self.encoder()
        return PrefixKV(gated(prefix.kv, 1 + _PACE * self.gate), prefix.starts)


def gated(kv: Tensor, gates: Tensor) -> Tensor:
    """kv (L, 2, R, H, D) with its values times gates (L, H)."""
    factors = torch.stack([torch.ones_like(gates), gates], dim=1)  # (L, 2, H)
    return kv * factors[:, :, None, :, None]
