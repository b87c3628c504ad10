"""The keys and values of a batch's tokens during generation.

A cache row holds one token's keys and values. A sequence's block table lists the rows it reads, so
beams share the rows of their prompt and of the tokens they have in common: when beams fork or rows
leave the batch, only tables are copied, never keys or values.

The reference attention gathers what it reads, so for it the cache also holds the prefixes' rows,
first in each table, and one gather copies both. A kernel reads prefixes by pointer.

    cache = KVCache(model, prompts, prefix, prefix_ids, limits)
    cache.step(cache.logits.argmax(-1))
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt_prefix import kernels
from mingpt_prefix.batch import Layout, PrefixKV, make_layout, make_positions
from mingpt_prefix.kernels.reference import prefix_rows
from mingpt_prefix.model import GPT2


class KVCache:
    """B rows, each a sequence behind its prefix.

    `logits` (B, V), float32, follow the last token of each row; `step` appends one token to each
    row; `keep` selects rows.
    """

    may_hold_prefix = True  # False if a sequence may switch to another prefix

    def __init__(
        self,
        model: GPT2,
        prompts: Sequence[list[int]],
        prefix: PrefixKV,
        prefix_ids: Sequence[int],
        limits: Sequence[int],
        prefix_from: Sequence[int] | None = None,
    ):
        """Run the prompts, packed.

        `limits` (B,): how many tokens can be appended to each. `prefix_from` (B,): the first token
        of each that sees its prefix, which then takes up no positions; None: all see it.
        """
        self.model, self.prefix, self.in_front = model, prefix, prefix_from is None
        layout = make_layout([len(ids) for ids in prompts], prefix_ids, prefix_from)
        layout = layout.to(model.device)
        self.prefix_ids = layout.prefix_ids
        self.lengths = layout.cu_seqlens.diff().long()  # (B,)
        columns = max(len(ids) + limit for ids, limit in zip(prompts, limits, strict=True))
        n_layer, _, n_prefix_rows, n_head, head_dim = prefix.kv.shape
        n_tokens = sum(len(ids) for ids in prompts)
        self.holds_prefix = model.attention == "reference" and self.may_hold_prefix
        self.n_rows = n_tokens + n_prefix_rows * self.holds_prefix
        # Columns after a sequence's own tokens are written before they are read.
        column = torch.arange(columns, dtype=torch.int32, device=model.device)
        self.table = layout.cu_seqlens[:-1, None] + column  # (B, K)
        self.kv = prefix.kv.new_empty(n_layer, 2, self.n_rows + sum(limits), n_head, head_dim)
        if self.holds_prefix:
            self.kv[:, :, :n_prefix_rows] = prefix.kv
            self._put_in_front(n_prefix_rows)
        self.table.clamp_(max=self.n_rows - 1)
        tokens = torch.tensor([i for ids in prompts for i in ids], device=model.device)
        self.logits, self.positions = self._prefill(tokens, layout)

    def _put_in_front(self, n_prefix_rows: int) -> None:
        """Start each table with the rows of the sequence's prefix, the first in the cache."""
        rows, real = prefix_rows(self.prefix.starts, self.prefix_ids)
        own = real.sum(1, dtype=torch.int32)[:, None]
        front = F.pad(rows.int(), (0, self.table.shape[1]))
        column = torch.arange(front.shape[1], dtype=torch.int32, device=own.device)
        token = self.table[:, :1] + n_prefix_rows + column - own
        self.table = torch.where(column < own, front, token)
        self.lengths = self.lengths + own[:, 0]

    def _prefill(self, tokens: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """The logits (B, V) after each prompt, and the positions (B,) of the next tokens."""
        lengths = self.prefix.lengths if self.in_front and len(self.prefix.lengths) else None
        positions = make_positions(layout, lengths)
        attend = self.model.bind_attention(len(tokens), layout, self.prefix)
        first, end = self.n_rows - len(tokens), self.n_rows

        def attend_and_keep(layer: int, qkv: Tensor) -> Tensor:
            self.kv[layer, :, first:end] = qkv[:, 1:].transpose(0, 1)  # (2, T, H, D)
            return attend(layer, qkv)

        last = layout.cu_seqlens[1:].long() - 1
        hidden = self.model.trunk(self.model.embed(tokens, positions), attend_and_keep, last)
        return self._head(hidden), positions[last] + 1

    def step(self, tokens: Tensor) -> None:
        """Append tokens (B,), one to each row."""
        own = torch.arange(
            self.n_rows, self.n_rows + len(tokens), dtype=torch.int32, device=tokens.device
        )
        self.n_rows += len(tokens)
        self.table.scatter_(1, self.lengths[:, None], own[:, None])

        kv, starts, ids = self.prefix.kv, self.prefix.starts, self.prefix_ids
        if self.holds_prefix:
            kv, starts, ids = kv[:, :, :0], starts[:1], torch.full_like(ids, -1)

        layout = (len(tokens), self.table, self.lengths, starts, ids)
        call = kernels.bind_decode(self.model.attention, *layout)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            return call(qkv, self.kv[layer], kv[layer])

        hidden = self.model.trunk(self.model.embed(tokens, self.positions), attend)
        self.lengths, self.positions = self.lengths + 1, self.positions + 1
        self.logits = self._head(hidden)

    def keep(self, rows: Tensor) -> None:
        """Replace the rows by those at `rows` (B',), each any number of times."""
        self.table, self.lengths, self.positions = (
            t[rows] for t in (self.table, self.lengths, self.positions)
        )
        self.prefix_ids, self.logits = self.prefix_ids[rows], self.logits[rows]

    def _head(self, hidden: Tensor) -> Tensor:
        # float32 even for a float64 model, as transformers ranks tokens.
        return self.model.head(hidden).float()
