"""The prefix: P key/value rows per layer, and how they are learned.

Optimising the rows directly is unstable (Li & Liang 2021, section 4.3), so during training an MLP
computes them from a smaller matrix; only its output is kept.

    encoder = PrefixEncoder(model.config, length=5)
    hidden = model(tokens, positions, layout, encoder())

The caller passes the rows' initial values: see `adapters.learned`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from mingpt_prefix.batch import PrefixKV, make_layout
from mingpt_prefix.config import ModelConfig
from mingpt_prefix.errors import ConfigError
from mingpt_prefix.model import GPT2

_DIRECT_STD = 0.3  # about the MLP's at initialisation
# For rows trained directly: the softmax amplifies a key's change and dilutes a value's.
_KEY_LR_SCALE, _VALUE_LR_SCALE = 0.7, 3.0


def rows_of(model: GPT2, x: Tensor) -> Tensor:
    """The keys and values (L, 2, P, H, D) of `model` for embeddings x (P, C)."""
    attend = model.bind_attention(len(x), make_layout([len(x)]).to(x.device), None)
    rows: list[Tensor] = []

    def keep(layer: int, qkv: Tensor) -> Tensor:
        rows.append(qkv[:, 1:].transpose(0, 1))  # (2, P, H, D)
        return attend(layer, qkv)

    model.trunk(x, keep)
    return torch.stack(rows)


def check_length(length: int, config: ModelConfig) -> None:
    """Raises ConfigError for no rows, or for so many that no position is left."""
    if not 0 < length < config.n_positions:
        most = config.n_positions - 1
        raise ConfigError(f"prefix-length must lie in 1 to {most} for this model, not {length}")


class PrefixEncoder(nn.Module):
    """P rows in training: `Embedding(P, C) -> Linear(C, mid) -> tanh -> Linear(mid, 2 * L * C)`.

    The MLP has PEFT's layout and names. With reparam=False the rows themselves are trained: per
    layer, keys and then values, each head a matrix (P, D) as Muon takes it; keys at 0.7 times the
    learning rate, values at 3 times. Initial values depend only on `seed`; `init_scale` multiplies
    those of the last weight. If `start` (L, 2, P, H, D) is given, the rows begin there, and what is
    learned is added. `dropout` acts on the rows in training mode. Raises ConfigError for impossible
    sizes.
    """

    def __init__(
        self,
        config: ModelConfig,
        length: int,
        mid_dim: int = 512,
        reparam: bool = True,
        seed: int = 0,
        init_scale: float = 1.0,
        dropout: float = 0.0,
        start: Tensor | None = None,
    ):
        super().__init__()
        check_length(length, config)
        if mid_dim < 1:
            raise ConfigError(f"mid_dim must be positive, not {mid_dim}")
        self.reparam, self.dropout = reparam, dropout
        self.register_buffer("start", start, persistent=False)
        self.shape = (config.n_layer, 2, length, config.n_head, config.head_dim)
        generator = torch.Generator().manual_seed(seed)
        if not reparam:
            lr_scale = torch.tensor([_KEY_LR_SCALE, _VALUE_LR_SCALE]).view(2, 1, 1, 1)
            self.register_buffer("lr_scale", lr_scale, persistent=False)
            first = torch.zeros(self.shape)
            if start is None:
                nn.init.normal_(first, std=_DIRECT_STD, generator=generator).div_(lr_scale)
            matrices = first.transpose(2, 3).flatten(0, 2)  # (L * 2 * H, P, D)
            self.rows = nn.ParameterList(matrix.clone() for matrix in matrices)
            return
        width = config.n_embd
        self.embedding = skip_init(nn.Embedding, length, width)
        self.transform = nn.Sequential(
            skip_init(nn.Linear, width, mid_dim),
            nn.Tanh(),
            skip_init(nn.Linear, mid_dim, 2 * config.n_layer * width),
        )
        # torch's defaults, but drawn from this generator.
        nn.init.normal_(self.embedding.weight, generator=generator)
        for linear in (self.transform[0], self.transform[2]):
            bound = linear.in_features**-0.5
            for parameter in (linear.weight, linear.bias):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        with torch.no_grad():
            self.transform[2].weight *= init_scale
            if start is not None:
                self.transform[2].weight.zero_()
                self.transform[2].bias.zero_()

    def forward(self) -> PrefixKV:
        """The P rows with their graph, in the parameters' dtype even under autocast."""
        kv = self._transformed() if self.reparam else self._direct()
        if self.start is not None:
            kv = kv + self.start
        return PrefixKV.from_tensor(F.dropout(kv, self.dropout, self.training))

    def _direct(self) -> Tensor:
        n_layer, _, length, n_head, head_dim = self.shape
        rows = torch.stack(list(self.rows)).view(n_layer, 2, n_head, length, head_dim)
        return self.lr_scale * rows.transpose(2, 3)  # (L, 2, P, H, D)

    def _transformed(self) -> Tensor:
        n_layer, _, length, n_head, head_dim = self.shape
        with torch.autocast(self.embedding.weight.device.type, enabled=False):
            rows = self.transform(self.embedding.weight)  # (P, 2 * L * C)
        rows = rows.view(length, n_layer, 2, n_head, head_dim)  # (P, L, 2, H, D)
        return rows.permute(1, 2, 0, 3, 4)  # (L, 2, P, H, D)


class VirtualTokens(nn.Module):
    """P learned embeddings, whose rows are the keys and values that the frozen model computes.

    Li & Liang (2021), section 7.2 ("embedding-only"). They start as the embeddings of the tokens
    `ids` (P), or of tokens drawn by `seed`.
    """

    def __init__(self, model: GPT2, length: int, seed: int, ids: Sequence[int] = ()):
        super().__init__()
        check_length(length, model.config)
        # In a tuple, so that the model is not registered as a submodule.
        self.frozen = (model,)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(model.config.vocab_size, (length,), generator=generator)
        if ids:
            drawn = torch.tensor(ids)
        words = model.wte.weight.detach()[drawn.to(model.device)]
        self.embedding = nn.Parameter(words.float().clone())

    def forward(self) -> PrefixKV:
        """The P rows in float32, with their graph."""
        (model,) = self.frozen
        positions = torch.arange(len(self.embedding), device=model.device)
        x = self.embedding.to(model.wte.weight.dtype) + model.wpe(positions)
        return PrefixKV.from_tensor(rows_of(model, x).float())
