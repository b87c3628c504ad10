"""LoRA (Hu et al. 2021): low-rank changes of a frozen model's weights, learned beside it.

    lora = Lora(model.config, rank=8, alpha=16, targets=("attn.c_attn",))
    with lora().attached(model):
        hidden = model(tokens, positions, layout)

The model knows nothing of it: while changes are attached, hooks add them to what its layers return.
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
    layout: x W + scale * (x a) b; `dropout` acts on the x of the second term, in training."""

    a: Tensor
    b: Tensor
    scale: float
    dropout: float

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor], y: Tensor) -> Tensor:
        """As a forward hook of the layer that multiplies by W: y (T, out), changed."""
        (x,) = inputs
        low = F.dropout(x, self.dropout, layer.training) @ self.a.to(x.dtype)
        return torch.addmm(y, low, self.b.to(x.dtype), alpha=self.scale)


@dataclass(frozen=True)
class LowRank:
    """Changes of the same weights in all L layers, as plain tensors.

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

    @contextmanager
    def attached(self, model: GPT2) -> Iterator[None]:
        """`model` computes with these changes, in backward too if it computes blocks again."""
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
    """(in, out) of each weight of a block that LoRA can change, by its name there."""
    width = config.n_embd
    return {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }


class Lora(nn.Module):
    """LoRA in training: a (L, in, r) and b (L, r, out) of each target, in float32; section 4.1.

    `a` begins as in the authors' code and PEFT, uniform in +-1 / sqrt(in), drawn by `seed` alone,
    and `b` as zeros: at first the model is what it was. Raises ConfigError for a rank that saves
    nothing.
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
