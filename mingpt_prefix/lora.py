"""LoRA in training (Hu et al. 2021): two thin matrices for each weight that is changed.

lora = Lora(model.config, rank=8, alpha=16, targets=("attn.c_attn",))
hidden = model(tokens, positions, layout, low_rank=lora())
"""

from collections.abc import Sequence

import torch
from torch import nn

from mingpt_prefix.config import ModelConfig
from mingpt_prefix.errors import ConfigError
from mingpt_prefix.low_rank import LowRank, weight_sizes


class Lora(nn.Module):
    """a (L, in, r) and b (L, r, out) of each target, in float32; section 4.1.

    `a` begins as the authors' code and PEFT have it, uniform in +-1 / sqrt(in), drawn by `seed`
    alone, and `b` as zeros: the model is at first what it was. Raises ConfigError for a rank that
    saves nothing.
    """

    def __init__(
        self,
        config: ModelConfig,
        rank: int,
        alpha: float,
        targets: Sequence[str],
        dropout: float = 0.0,
        seed: int = 0,
    ):
        super().__init__()
        self.targets, self.scale, self.dropout = tuple(targets), alpha / rank, dropout
        if not 0 < rank <= config.n_embd:
            most = config.n_embd
            raise ConfigError(f"lora-rank must lie in 1 to {most} for this model, not {rank}")
        generator = torch.Generator().manual_seed(seed)
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        sizes = weight_sizes(config)
        for n_in, n_out in (sizes[target] for target in self.targets):
            a, b = torch.empty(config.n_layer, n_in, rank), torch.zeros(config.n_layer, rank, n_out)
            bound = n_in**-0.5
            self.a.append(nn.Parameter(a.uniform_(-bound, bound, generator=generator)))
            self.b.append(nn.Parameter(b))

    def forward(self) -> LowRank:
        """The changes as they are now, with their graph; without dropout in eval mode."""
        factors = dict(zip(self.targets, zip(self.a, self.b, strict=True), strict=True))
        return LowRank(factors, self.scale, self.dropout if self.training else 0.0)
