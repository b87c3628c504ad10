"""GPT-2 (Radford et al. 2019) over packed sequences, with prefix rows before every layer's keys.

Parameters keep GPT-2's names and its (in, out) layout, so OpenAI's weights load unchanged. The B
sequences of a batch are concatenated into T tokens; C = H * D is the width, V the vocabulary size.

    hidden = model(tokens, positions, layout, prefix, index)  # (M, C), where a target is predicted
    logits = model.head(hidden)                               # (M, V)
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mingpt_prefix import kernels
from mingpt_prefix.batch import Layout, PrefixKV, make_layout, make_positions
from mingpt_prefix.config import ModelConfig

# Attention of one layer: (layer, qkv (T, 3, H, D)) -> (T, H, D).
Attend = Callable[[int, Tensor], Tensor]


class Conv1D(nn.Module):
    """GPT-2's linear layer: its weight is (in, out)."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


def _embedding(rows: int, width: int) -> nn.Embedding:
    """Not initialised, like Conv1D: on the meta device, that would import torch's compiler."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class TiedHead(nn.Module):
    """The vocabulary head, whose weight (V, C) is the token embedding's."""

    def forward(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.linear(hidden, weight)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_head, self.head_dim = config.n_head, config.head_dim
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, layer: int, attend: Attend, index: Tensor | None) -> Tensor:
        qkv = self.c_attn(x).view(-1, 3, self.n_head, self.head_dim)  # (T, 3, H, D)
        mixed = attend(layer, qkv).flatten(1)  # (T, C)
        return self.c_proj(mixed if index is None else mixed.index_select(0, index))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.c_fc = Conv1D(config.n_embd, 4 * config.n_embd)
        self.c_proj = Conv1D(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, layer: int, attend: Attend, dropout: float, index: Tensor | None
    ) -> Tensor:
        kept = x if index is None else x.index_select(0, index)
        x = kept + F.dropout(self.attn(self.ln_1(x), layer, attend, index), dropout, self.training)
        return x + F.dropout(self.mlp(self.ln_2(x)), dropout, self.training)


class GPT2(nn.Module):
    """The model. `attention` names the backend of attention: see `mingpt_prefix.kernels`.

    `dropout` acts on embeddings and residuals in training mode, never on attention weights. With
    `grad_checkpoint`, only each block's input is kept, and backward recomputes the rest.
    """

    def __init__(self, config: ModelConfig, attention: str = "reference", dropout: float = 0.0):
        super().__init__()
        self.config, self.attention, self.dropout = config, attention, dropout
        self.grad_checkpoint = False
        self.name, self.fingerprint = "", ""  # of its weights: see `checkpoints.pretrained`
        self.wte = _embedding(config.vocab_size, config.n_embd)
        self.wpe = _embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.tied_head = TiedHead()

    def __repr__(self) -> str:
        c, dtype = self.config, str(self.wte.weight.dtype).removeprefix("torch.")
        sizes = f"{c.n_layer} layers, {c.n_head} heads of {c.head_dim}, {c.vocab_size:,} tokens"
        return f"{type(self).__name__}({self.name or 'unnamed'}: {sizes}, {dtype} on {self.device})"

    def initialize(self, seed: int) -> "GPT2":
        """Draw GPT-2's initial weights: normal, std 0.02; residual projections / sqrt(2 L)."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                std = 0.02 / (2 * self.config.n_layer) ** 0.5 if "c_proj" in name else 0.02
                nn.init.normal_(parameter, std=std, generator=generator)
        return self

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    @property
    def padding(self) -> range:
        """Ids of the vocabulary that stand for no token; they are never generated."""
        return range(self.config.n_tokens, self.wte.num_embeddings)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The first block's input (T, C) for tokens (T,) at positions (T,)."""
        return F.dropout(self.wte(tokens) + self.wpe(positions), self.dropout, self.training)

    def trunk(self, x: Tensor, attend: Attend, index: Tensor | None = None) -> Tensor:
        """Hidden states (T, C) from embeddings (T, C), or only those of the tokens `index` (M,),
        with the given attention. After its attention, the last block skips the other tokens."""
        again = self.grad_checkpoint and torch.is_grad_enabled()
        for layer, block in enumerate(self.h):
            inputs = (x, layer, attend, self.dropout, index if block is self.h[-1] else None)
            x = checkpoint(block, *inputs, use_reentrant=False) if again else block(*inputs)
        return self.ln_f(x)

    def bind_attention(self, n_tokens: int, layout: Layout, prefix: PrefixKV | None) -> Attend:
        """The attention of T packed tokens, for `trunk`.

        Raises ValueError if the prefix does not have the model's shape.
        """
        n_rows = 0 if prefix is None else prefix.kv.shape[2]
        shape = (self.config.n_layer, 2, n_rows, self.config.n_head, self.config.head_dim)
        if prefix is None:
            kv = self.wte.weight.new_zeros(shape)
            starts = layout.cu_seqlens.new_zeros(1)
        elif prefix.kv.shape != shape:
            raise ValueError(f"prefix: expected shape {shape}, got {tuple(prefix.kv.shape)}")
        else:
            kv, starts = prefix.kv, prefix.starts
        call = kernels.bind(self.attention, n_tokens, layout, starts)
        layers = kv.unbind()  # indexing per layer would allocate a gradient of kv's size for each
        return lambda layer, qkv: call(qkv, layers[layer])

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        layout: Layout,
        prefix: PrefixKV | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (T, C) of packed tokens at positions (T,), each sequence with its prefix;
        with `index` (M,), only those of these tokens.

        Raises ValueError if the prefix does not have the model's shape.
        """
        attend = self.bind_attention(len(tokens), layout, prefix)
        return self.trunk(self.embed(tokens, positions), attend, index)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (M, V) of hidden states (M, C): the token embedding, transposed."""
        return self.tied_head(hidden, self.wte.weight)

    def logits(
        self,
        sequences: Sequence[Tensor | Sequence[int]],
        prefix: PrefixKV | None = None,
        prefix_ids: Tensor | Sequence[int] | None = None,
        prefix_from: Tensor | Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Logits of every token of B sequences: each of (T_b,) ids gives (T_b, V).

        They are float32, or float64 for a float64 model. `prefix_ids` (B,): the prefix of each
        sequence, -1 for none; None means prefix 0 for all. `prefix_from` (B,): the first token
        that sees it; None means the first of all. Keeps the autograd graph.

        Raises:
            ValueError: if a position passes the model's limit, an id names no prefix, or the prefix
                does not have the model's shape.
        """
        if len(sequences) == 0:
            return []
        ids = [torch.as_tensor(s, dtype=torch.long, device=self.device) for s in sequences]
        prefix = None if prefix is None else prefix.to(self.device)
        if prefix is not None and prefix_ids is None:
            prefix_ids = [0] * len(ids)
        layout = make_layout([len(i) for i in ids], prefix_ids, prefix_from).to(self.device)
        n_prefixes = 0 if prefix is None else len(prefix.lengths)
        if not ((layout.prefix_ids >= -1) & (layout.prefix_ids < n_prefixes)).all():
            given = layout.prefix_ids.tolist()
            raise ValueError(f"prefix_ids: {given} of {n_prefixes} prefixes (-1: none)")
        in_front = prefix is not None and prefix_from is None
        positions = make_positions(layout, prefix.lengths if in_front else None)
        limit = self.config.n_positions
        if len(positions) and (last := int(positions.max())) >= limit:
            raise ValueError(f"sequences: position {last} passes the limit {limit}")
        logits = self.head(self(torch.cat(ids), positions, layout, prefix))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return list(logits.split([len(i) for i in ids]))
