"""The gradient of the prefix rows, in Triton: a sum over all sequences that see them.

The queries are cut into splits, as many as the shapes alone say. A program has a block of prefix
rows, one head and one split, and goes over that split's queries; the splits' partial sums are added
in a fixed order by one more kernel. There are no atomic additions: equal inputs give equal bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mingpt_prefix.kernels.blocks import (
    INFINITY,
    LOG2_E,
    Pair,
    choose_tiles,
    dot,
    load_rows,
    locate_prefix,
    locate_sequence,
    store_rows,
    weights,
)
from mingpt_prefix.kernels.layout import Layout

# Programs that a large GPU runs at once; fixed, so that a gradient does not depend on the machine.
_PROGRAMS = 256

_COUNTS = ["n_tokens", "n_rows", "n_units", "units_per_split", "blocks_per_seq"]


@triton.jit(do_not_specialize=_COUNTS)
def _prefix_kernel(
    p_qkv, p_prefix, p_cu_seqlens, p_prefix_starts, p_prefix_ids, p_prefix_from, p_out, p_lse,
    p_d_out, p_delta, p_sums, qkv_token, qkv_head, prefix_part, prefix_row, prefix_head,
    d_out_token, d_out_head, n_tokens, n_rows, n_units, units_per_split, blocks_per_seq, scale,
    H: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr, HAS_DELTA: tl.constexpr,
):  # fmt: skip
    """The gradient of BLOCK_P prefix rows, of whichever prefixes, over one split's queries.

    A unit is a block of BLOCK_M queries of one sequence; a split has units_per_split of them. If
    the queries' gradient is not wanted, no kernel has computed `delta` before.
    """
    row, head, split = tl.program_id(0) * BLOCK_P, tl.program_id(1), tl.program_id(2)
    o_row = row + tl.arange(0, BLOCK_P)
    p_pk = p_prefix + head * prefix_head
    b_k = load_rows(p_pk, row, n_rows, prefix_row, D, BLOCK_P, BLOCK_D)
    b_v = load_rows(p_pk + prefix_part, row, n_rows, prefix_row, D, BLOCK_P, BLOCK_D)
    b_k, b_v = b_k.to(p_qkv.dtype.element_ty), b_v.to(p_qkv.dtype.element_ty)
    b_dk = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    b_dv = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    first_unit = split * units_per_split
    for unit in range(first_unit, tl.minimum(first_unit + units_per_split, n_units)):
        seq, m = unit // blocks_per_seq, (unit % blocks_per_seq) * BLOCK_M
        start, length = locate_sequence(p_cu_seqlens, seq)
        own, n_own = locate_prefix(p_prefix_starts, p_prefix_ids, seq)
        seen_from = tl.load(p_prefix_from + seq)
        late = seen_from < tl.minimum(m + BLOCK_M, length)
        if late & (m < length) & (own < row + BLOCK_P) & (own + n_own > row):
            o_m = m + tl.arange(0, BLOCK_M)
            p_q = p_qkv + start * qkv_token + head * qkv_head
            p_do = p_d_out + start * d_out_token + head * d_out_head
            b_q = load_rows(p_q, m, length, qkv_token, D, BLOCK_M, BLOCK_D)
            o_lse = tl.cast(head, tl.int64) * n_tokens + start + o_m
            if HAS_DELTA:
                b_do = load_rows(p_do, m, length, d_out_token, D, BLOCK_M, BLOCK_D)
                b_delta = tl.load(p_delta + o_lse, mask=o_m < length, other=0.0)[None, :]
            else:
                p_o = p_out + start * H * D + head * D
                b_o = load_rows(p_o, m, length, H * D, D, BLOCK_M, BLOCK_D)
                b_do = load_rows(p_do, m, length, d_out_token, D, BLOCK_M, BLOCK_D)
                b_delta = tl.sum(b_o.to(tl.float32) * b_do.to(tl.float32), 1)[None, :]
            b_lse = tl.load(p_lse + o_lse, mask=o_m < length, other=INFINITY)[None, :]
            m_own = (o_row >= own) & (o_row < own + n_own)
            m_seen = m_own[:, None] & (o_m >= seen_from)[None, :]
            b_p, b_ds = weights(b_k, b_q, b_v, b_do, b_lse, b_delta, m_seen, scale * LOG2_E, True)
            b_dv = dot(b_p.to(b_do.dtype), b_do, b_dv)
            b_dk = dot(b_ds.to(b_q.dtype), b_q, b_dk)
    size = tl.cast(n_rows, tl.int64) * H * D
    p_dk = p_sums + 2 * split * size + head * D
    store_rows(p_dk, b_dk * scale, row, n_rows, H * D, D, BLOCK_P, BLOCK_D)
    store_rows(p_dk + size, b_dv, row, n_rows, H * D, D, BLOCK_P, BLOCK_D)


@triton.jit(do_not_specialize=["size", "n_splits"])
def _add_kernel(p_sums, p_total, size, n_splits, BLOCK: tl.constexpr):
    """The splits' sums, one after the other."""
    o_all = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_total = tl.zeros((BLOCK,), tl.float32)
    for split in range(n_splits):
        p_split = p_sums + tl.cast(split, tl.int64) * size
        b_total += tl.load(p_split + o_all, mask=o_all < size, other=0.0)
    tl.store(p_total + o_all, b_total.to(p_total.dtype.element_ty), mask=o_all < size)


def launch_prefix_backward(
    d_out: Tensor,
    qkv: Tensor,
    prefix_kv: Tensor,
    output: Pair,
    layout: Layout,
    prefix_starts: Tensor,
    delta: Tensor | None = None,
) -> Tensor:
    """The gradient of prefix_kv, (2, R, H, D), in its dtype.

    `delta` (H, T): each query's sum of output times its gradient, if it was computed already.
    """
    (n_tokens, _, n_head, head_dim), n_rows = qkv.shape, prefix_kv.shape[1]
    d_prefix = torch.empty_like(prefix_kv, memory_format=torch.contiguous_format)
    if d_prefix.numel():
        tiles = choose_tiles(qkv, prefix_kv, layout.max_seq_len, forward=False)
        n_blocks, per_seq = triton.cdiv(n_rows, tiles.P), triton.cdiv(layout.max_seq_len, tiles.M)
        n_units = len(layout.prefix_ids) * per_seq
        wanted = max(1, min(n_units, _PROGRAMS // (n_blocks * n_head)))
        per_split = max(1, triton.cdiv(n_units, wanted))
        n_splits = max(1, triton.cdiv(n_units, per_split))
        sums = d_prefix  # one split: no other to add
        if n_splits > 1:
            sums = d_prefix.new_empty(n_splits, *d_prefix.shape, dtype=torch.float32)
        with torch.cuda.device_of(qkv):
            _prefix_kernel[n_blocks, n_head, n_splits](
                qkv, prefix_kv, layout.cu_seqlens, prefix_starts, layout.prefix_ids,
                layout.prefix_from, *output, d_out, output[1] if delta is None else delta, sums,
                qkv.stride(0), qkv.stride(2), *prefix_kv.stride()[:3],
                *d_out.stride()[:2], n_tokens, n_rows, n_units, per_split, max(1, per_seq),
                head_dim**-0.5, H=n_head, D=head_dim, BLOCK_M=tiles.M, BLOCK_P=tiles.P,
                BLOCK_D=tiles.D, HAS_DELTA=delta is not None, **tiles.options,
            )  # fmt: skip
            if n_splits > 1:
                size = d_prefix.numel()
                grid = (triton.cdiv(size, 512),)
                _add_kernel[grid](sums, d_prefix, size, n_splits, BLOCK=512, enable_fp_fusion=True)
    return d_prefix
