"""Prefix attention in plain PyTorch: the oracle for every kernel, and the default backend.

Sequences are packed without padding; each may see the rows of one prefix in front of its own keys
and values (Li & Liang 2021, section 4). Here the packed rows are copied to padded (B, S) grids, the
prefix rows are concatenated in front of the keys and values, and torch's scaled dot product
attention does the rest.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt_prefix.kernels.layout import Layout

_MOST_IN_GRID = 4  # sequences that share a grid on a CPU


def prefix_rows(starts: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Each sequence's prefix rows (B, P), padded with its first, and which are real (B, P)."""
    # Index -1 selects the appended entry: no rows.
    sizes = torch.cat([starts.diff(), starts.new_zeros(1)])[ids.long()]
    row = torch.arange(int(sizes.max()) if sizes.numel() else 0, device=starts.device)
    real = row < sizes[:, None]
    first = torch.cat([starts[:-1], starts.new_zeros(1)])[ids.long()]
    # Padding with another prefix's row would let its NaN through, which no mask stops.
    padding = torch.where(sizes > 0, first, 0)
    return torch.where(real, first[:, None] + row, padding[:, None]).long(), real


def _compute_dtype(qkv: Tensor) -> torch.dtype:
    """On a CPU, torch's attention backward is twice as fast in 32 bits as in 16."""
    has_backward = torch.is_grad_enabled() and qkv.device.type == "cpu"
    return torch.promote_types(qkv.dtype, torch.float32) if has_backward else qkv.dtype


def scaled_dot_product_attention(q: Tensor, *args, **kwargs) -> Tensor:
    """torch's function, in the dtype of `q` even under autocast."""
    with torch.autocast(q.device.type, enabled=False):
        return F.scaled_dot_product_attention(q, *args, **kwargs)


class PaddedPlan:
    """The place of each packed token in padded grids, and the grids' attention masks.

    Created once per batch with the arguments of `kernels.bind`, called once per layer: `qkv`
    (T, 3, H, D) and `prefix_kv` (2, R, H, D) give (T, H, D). On a CPU, where padding costs more
    than calls, sequences of similar lengths share a grid.
    """

    def __init__(self, n_tokens: int, layout: Layout, prefix_starts: Tensor):
        device, lengths = layout.cu_seqlens.device, layout.cu_seqlens.diff()
        self.n_tokens, self.n_used = n_tokens, int(layout.cu_seqlens[-1])
        order, widths = torch.arange(len(lengths), device=device), [layout.max_seq_len]
        ids_of = [order]
        if device.type == "cpu" and len(lengths) > _MOST_IN_GRID:
            order = lengths.argsort(descending=True, stable=True)
            ids_of = order.split(_MOST_IN_GRID)
            widths = [max(1, int(lengths[ids[0]])) for ids in ids_of]
        each = zip(ids_of, widths, strict=True)
        self.grids = [_Grid(ids, width, layout, prefix_starts) for ids, width in each]
        self.sizes = [len(ids) * width for ids, width in zip(ids_of, widths, strict=True)]
        self.slots = None  # None: the packed rows already form the grid
        if len(self.grids) > 1 or self.n_used != self.sizes[0]:
            taken = torch.cat([torch.full_like(i, w) for i, w in zip(ids_of, widths, strict=True)])
            first = torch.empty_like(order).index_copy(0, order, taken.cumsum(0) - taken)  # (B,)
            shift = first - layout.cu_seqlens[:-1]
            shift = shift.repeat_interleave(lengths, output_size=self.n_used)
            self.slots = torch.arange(self.n_used, device=device) + shift  # (n_used,)

    def __call__(self, qkv: Tensor, prefix_kv: Tensor) -> Tensor:
        used = qkv[: self.n_used]
        if self.slots is not None:
            used = qkv.new_zeros(sum(self.sizes), *qkv.shape[1:]).index_copy(0, self.slots, used)
        each = zip(self.grids, used.split(self.sizes), strict=True)
        parts = [grid(own, prefix_kv) for grid, own in each]
        out = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.slots is not None:
            out = out.index_select(0, self.slots)
        if self.n_used < self.n_tokens:
            out = torch.cat([out, out.new_zeros(self.n_tokens - self.n_used, *out.shape[1:])])
        return out  # (T, H, D)


class _Grid:
    """The sequences `ids` (B,) of a batch, padded to one width S."""

    def __init__(self, ids: Tensor, width: int, layout: Layout, prefix_starts: Tensor):
        self.shape = (len(ids), width)
        self.rows, self.mask = None, None
        if prefix_starts.numel() > 1:
            sees, first = layout.prefix_ids[ids], layout.prefix_from[ids]
            self._see_prefixes(prefix_starts, sees, first)

    def _see_prefixes(self, starts: Tensor, ids: Tensor, first: Tensor) -> None:
        """Set `rows` (B, P), the prefix rows of each sequence, and `mask` (B, 1, S, P + S).

        The mask is True where a query sees a key. B is 1 in either if all sequences are alike.
        """
        rows, has_row = prefix_rows(starts, ids)
        if rows.shape[1] == 0:
            return
        column = torch.arange(self.shape[1], device=rows.device)
        late = column >= first[:, None]  # (B, S)
        causal = (column <= column[:, None]).expand(len(late), -1, -1)
        mask = torch.cat([late[:, :, None] & has_row[:, None, :], causal], dim=2)[:, None]
        self.rows, self.mask = (x[:1] if (x == x[:1]).all() else x for x in (rows, mask))

    def __call__(self, used: Tensor, prefix_kv: Tensor) -> Tensor:
        """used (B * S, 3, H, D) -> (B * S, H, D)."""
        n_seqs, _ = self.shape
        grid = used.unflatten(0, self.shape)  # (B, S, 3, H, D)
        q, k, v = grid.permute(2, 0, 3, 1, 4).to(_compute_dtype(used))  # each (B, H, S, D)
        if self.rows is None:
            out = scaled_dot_product_attention(q, k, v, is_causal=True)
            if prefix_kv.requires_grad:  # rows that no query sees get a gradient too: 0
                out = out + prefix_kv[:, :0].sum().to(out.dtype)
        else:
            front = prefix_kv.to(q.dtype).index_select(1, self.rows.flatten())
            front = front.unflatten(1, self.rows.shape).transpose(2, 3)  # (2, B or 1, H, P, D)
            front_k, front_v = front.expand(2, n_seqs, *front.shape[2:]).unbind()
            k, v = torch.cat([front_k, k], dim=2), torch.cat([front_v, v], dim=2)
            out = scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        return out.to(used.dtype).transpose(1, 2).flatten(0, 1)


def prefix_attention(
    qkv: Tensor,
    prefix_kv: Tensor,
    cu_seqlens: Tensor,
    prefix_starts: Tensor,
    prefix_ids: Tensor,
    prefix_from: Tensor,
    max_seq_len: int,
) -> Tensor:
    """Causal attention of B packed sequences, each with at most one prefix in front; one layer.

    qkv (T, 3, H, D): queries, keys and values as `c_attn` wrote them.
    prefix_kv (2, R, H, D): keys, then values, of all prefixes, concatenated.
    cu_seqlens (B+1,), prefix_starts (N+1,): row offsets of the sequences and of the prefixes.
    prefix_ids (B,): the prefix each sequence sees, -1 for none.
    prefix_from (B,): the first of the sequence's tokens whose query sees the prefix.
    max_seq_len: at least the longest sequence's length.

    Returns (T, H, D); rows after the last sequence are 0.
    """
    layout = Layout(cu_seqlens, prefix_ids, prefix_from, max_seq_len)
    return PaddedPlan(len(qkv), layout, prefix_starts)(qkv, prefix_kv)


class GatherPlan:
    """Which cache rows and prefix rows each sequence's new token sees.

    Created once per step with the arguments of `decode_attention`, called once per layer: `qkv`
    (B, 3, H, D), `cache` (2, S, H, D), which receives the new keys and values, and `prefix_kv`
    (2, R, H, D) give (B, H, D).
    """

    def __init__(
        self, block_table: Tensor, lengths: Tensor, prefix_starts: Tensor, prefix_ids: Tensor
    ):
        own = block_table.gather(1, lengths[:, None].long()).long()  # (B, 1)
        self.own = own[:, 0]
        n_columns = int(lengths.max()) + 1 if len(lengths) else 0
        live = torch.arange(n_columns, device=own.device) <= lengths[:, None]  # (B, S)
        # A masked NaN still spreads, and unwritten rows may hold one: read the own row instead.
        table = torch.where(live, block_table[:, :n_columns].long(), own)
        self.shape, self.table = table.shape, table.flatten()
        self.rows, seen = prefix_rows(prefix_starts, prefix_ids)
        mask = torch.cat([seen, live], dim=1) if self.rows.shape[1] else live
        self.mask = None if mask.all() else mask[:, None, None]  # (B, 1, 1, P + S)

    def __call__(self, qkv: Tensor, cache: Tensor, prefix_kv: Tensor) -> Tensor:
        q, k, v = qkv.unbind(1)  # each (B, H, D)
        front = prefix_kv.to(qkv.dtype)[:, self.rows] if self.rows.shape[1] else (None, None)
        seen = []
        for part, (new, rows) in enumerate(zip((k, v), front, strict=True)):
            cache[part, self.own] = new
            own = cache[part].index_select(0, self.table).unflatten(0, self.shape)  # (B, S, H, D)
            own = own if rows is None else torch.cat([rows, own], dim=1)
            seen.append(own.transpose(1, 2))  # (B, H, P + S, D)
        return scaled_dot_product_attention(q[:, :, None], *seen, attn_mask=self.mask)[:, :, 0]


def decode_attention(
    qkv: Tensor,
    cache: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    prefix_kv: Tensor,
    prefix_starts: Tensor,
    prefix_ids: Tensor,
) -> Tensor:
    """Attention of one new token per sequence to its cached tokens and its prefix; one layer.

    qkv (B, 3, H, D).
    cache (2, S, H, D): receives the new keys and values.
    block_table (B, K) int: the cache row of each of a sequence's tokens, including the new one, so
    sequences can share rows; entries after the new token's are not read.
    lengths (B,): how many tokens of each sequence are in the cache already.
    prefix_kv, prefix_starts, prefix_ids: as in `prefix_attention`.

    Returns (B, H, D).
    """
    return GatherPlan(block_table, lengths, prefix_starts, prefix_ids)(qkv, cache, prefix_kv)
