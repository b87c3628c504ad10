"""LoRA (Hu et al. 2021): learned low-rank changes of a frozen model's weights.

    lora = Lora(model.config, rank=8, alpha=16, targets=("attn.c_attn",))
    with lora().attached(model):
        hidden = model(tokens, positions, layout)

The model does not know about it: while attached, hooks add the changes to its layers' outputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mingpt_prefix.config import ModelConfig
from mingpt_prefix.errors import ConfigError
from mingpt_prefix.model import GPT2


@dataclass(frozen=True)
class Change:
    """The change of one weight W (in, out): a (in, r) and b (r, out). Section 4.1, eq. 3, in this
    layout: x W + scale * (x a) b. In training, `dropout` acts on the x of the second term."""

    a: Tensor
    b: Tensor
    scale: float
    dropout: float

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor], y: Tensor) -> Tensor:
        """A forward hook of the layer that multiplies by W: returns the changed y (T, out)."""
        (x,) = inputs
        low = F.dropout(x, self.dropout, layer.training) @ self.a.to(x.dtype)
        return torch.addmm(y, low, self.b.to(x.dtype), alpha=self.scale)


@dataclass(frozen=True)
class LowRank:
    """Changes of the same weights in all L layers, as plain tensors.

    factors: a (L, in, r) and b (L, r, out) by the weight's name in a block.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    scale: float
    dropout: float = 0.0

    def tensors(self) -> list[Tensor]:
        return [factor for pair in self.factors.values() for factor in pair]

    def layers(self) -> list[dict[str, Change]]:
        """The changes of each layer, by the weight's name in a block."""
        found: list[dict[str, Change]] = []
        for target, (a, b) in self.factors.items():
            found = found or [{} for _ in range(len(a))]
            for layer, pair in zip(found, zip(a.unbind(), b.unbind(), strict=True), strict=True):
                layer[target] = Change(*pair, self.scale, self.dropout)
        return found

    @contextmanager
    def attached(self, model: GPT2) -> Iterator[None]:
        """While attached, `model` computes with these changes, also where backward recomputes."""
        hooks = [
            block.get_submodule(target).register_forward_hook(change)
            for block, changes in zip(model.h, self.layers(), strict=True)
            for target, change in changes.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def weight_sizes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of each weight that LoRA can change, by its name in a block."""
    width = config.n_embd
    return {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }


class Lora(nn.Module):
    """LoRA in training: a (L, in, r) and b (L, r, out) of each target, in float32; section 4.1.

    As in the authors' code and in PEFT, `a` starts uniform in +-1 / sqrt(in), drawn by `seed`, and
    `b` as zeros, so training starts from the unchanged model. Raises ConfigError for a rank above
    the width.
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
        """The current changes with their graph; no dropout in eval mode."""
        factors = dict(zip(self.targets, zip(self.a, self.b, strict=True), strict=True))
        return LowRank(factors, self.scale, self.dropout if self.training else 0.0)
