"""Attention of one new token for each row of a batch, in Triton: a paged cache, and prefix rows.

A program computes one head of one row over a stretch of SPLIT cached tokens; the first stretch
includes the prefix rows. Keys and values are read only once, so there are no matrix products. If
the cache can hold more than one stretch, a second kernel combines them. A stretch is as long in
every batch: a row's result does not depend on the rows beside it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mingpt_prefix.kernels.blocks import INFINITY, LOG2_E, LOWEST, load_rows, locate_prefix

SPLIT = 256
_BLOCK_N = 32


@triton.jit
def _take(b_q, b_k, b_v, m_seen, b_out, b_max, b_sum):
    """One step of the online softmax for a single query: a block of keys and values."""
    b_s = tl.sum(b_k.to(tl.float32) * b_q[None, :], 1)
    b_s = tl.where(m_seen, b_s, -INFINITY)
    b_new = tl.maximum(b_max, tl.max(b_s, 0))
    b_p, b_fade = tl.exp2(b_s - b_new), tl.exp2(b_max - b_new)
    b_out = b_out * b_fade + tl.sum(b_p[:, None] * b_v.to(tl.float32), 0)
    return b_out, b_new, b_sum * b_fade + tl.sum(b_p, 0)


@triton.jit(do_not_specialize=["table_seq"])
def _decode_kernel(
    p_qkv, p_cache, p_table, p_lengths, p_prefix, p_prefix_starts, p_prefix_ids, p_out, p_stats,
    qkv_seq, qkv_part, qkv_head, cache_part, cache_row, cache_head, table_seq, prefix_part,
    prefix_row, prefix_head, scale, H: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, SPLIT: tl.constexpr, ONE_SPLIT: tl.constexpr,
):  # fmt: skip
    head, split, seq = tl.program_id(0), tl.program_id(1), tl.cast(tl.program_id(2), tl.int64)
    o_d, o_block = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    m_d = o_d < D
    length = tl.load(p_lengths + seq).to(tl.int32)
    p_table += seq * table_seq
    p_q = p_qkv + seq * qkv_seq + head * qkv_head + o_d
    b_q = tl.load(p_q, mask=m_d, other=0.0).to(tl.float32) * (scale * LOG2_E)
    b_out = tl.zeros((BLOCK_D,), tl.float32)
    b_max = tl.full((), LOWEST, tl.float32)
    b_sum = tl.full((), 0.0, tl.float32)

    if length // SPLIT == split:  # the new token is in this stretch
        b_k = tl.load(p_q + qkv_part, mask=m_d, other=0.0)
        b_v = tl.load(p_q + 2 * qkv_part, mask=m_d, other=0.0)
        p_own = p_cache + tl.load(p_table + length).to(tl.int64) * cache_row
        p_own += head * cache_head + o_d
        tl.store(p_own, b_k, mask=m_d)
        tl.store(p_own + cache_part, b_v, mask=m_d)
        b_max = tl.sum(b_k.to(tl.float32) * b_q, 0)
        b_sum += 1.0
        b_out += b_v.to(tl.float32)

    if split == 0:
        row, n_rows = locate_prefix(p_prefix_starts, p_prefix_ids, seq)
        p_pk = p_prefix + row * prefix_row + head * prefix_head
        for n in range(0, n_rows, BLOCK_N):
            b_keys = load_rows(p_pk, n, n_rows, prefix_row, D, BLOCK_N, BLOCK_D)
            b_values = load_rows(p_pk + prefix_part, n, n_rows, prefix_row, D, BLOCK_N, BLOCK_D)
            # Rounded as a prefix is in training.
            b_keys = b_keys.to(p_qkv.dtype.element_ty)
            b_values = b_values.to(p_qkv.dtype.element_ty)
            m_in = n + o_block < n_rows
            b_out, b_max, b_sum = _take(b_q, b_keys, b_values, m_in, b_out, b_max, b_sum)

    for n in range(split * SPLIT, tl.minimum(split * SPLIT + SPLIT, length), BLOCK_N):
        m_in = n + o_block < length
        o_row = tl.load(p_table + n + o_block, mask=m_in, other=0).to(tl.int64) * cache_row
        p_rows = p_cache + head * cache_head + o_row[:, None] + o_d[None, :]
        m_all = m_in[:, None] & m_d[None, :]
        b_keys = tl.load(p_rows, mask=m_all, other=0.0)
        b_values = tl.load(p_rows + cache_part, mask=m_all, other=0.0)
        b_out, b_max, b_sum = _take(b_q, b_keys, b_values, m_in, b_out, b_max, b_sum)

    if ONE_SPLIT:
        p_own_out = p_out + (seq * H + head) * D + o_d
        tl.store(p_own_out, (b_out / b_sum).to(p_out.dtype.element_ty), mask=m_d)
    else:
        o_part = (seq * H + head) * tl.num_programs(1) + split
        tl.store(p_out + o_part * D + o_d, b_out, mask=m_d)
        tl.store(p_stats + 2 * o_part, b_max)
        tl.store(p_stats + 2 * o_part + 1, b_sum)


@triton.jit(do_not_specialize=["n_splits"])
def _combine_kernel(
    p_parts, p_stats, p_out, n_splits, H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Combine the stretches of a row and head; the sum of one that held no key is 0."""
    o_d = tl.arange(0, BLOCK_D)
    own = tl.cast(tl.program_id(1), tl.int64) * H + tl.program_id(0)
    p_parts += own * n_splits * D + o_d
    p_stats += own * n_splits * 2
    b_out = tl.zeros((BLOCK_D,), tl.float32)
    b_max = tl.full((), LOWEST, tl.float32)
    b_sum = tl.full((), 0.0, tl.float32)
    for split in range(n_splits):
        b_own = tl.load(p_stats + 2 * split)
        b_new = tl.maximum(b_max, b_own)
        b_fade, b_share = tl.exp2(b_max - b_new), tl.exp2(b_own - b_new)
        b_part = tl.load(p_parts + split * D, mask=o_d < D, other=0.0)
        b_out = b_out * b_fade + b_part * b_share
        b_sum = b_sum * b_fade + tl.load(p_stats + 2 * split + 1) * b_share
        b_max = b_new
    b_out = (b_out / b_sum).to(p_out.dtype.element_ty)
    tl.store(p_out + own * D + o_d, b_out, mask=o_d < D)


def launch_decode(
    qkv: Tensor,
    cache: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    prefix_kv: Tensor,
    prefix_starts: Tensor,
    prefix_ids: Tensor,
) -> Tensor:
    """As `reference.decode_attention`; `kernels.bind_decode` checks the arguments."""
    n_seqs, _, n_head, head_dim = qkv.shape
    out = qkv.new_empty(n_seqs, n_head, head_dim)
    n_splits = triton.cdiv(block_table.shape[1], SPLIT)
    parts, stats = out, out
    if n_splits > 1:
        parts = out.new_empty(n_seqs, n_head, n_splits, head_dim, dtype=torch.float32)
        stats = out.new_empty(n_seqs, n_head, n_splits, 2, dtype=torch.float32)
    if out.numel():
        sizes = dict(H=n_head, D=head_dim, BLOCK_D=triton.next_power_of_2(head_dim))
        with torch.cuda.device_of(qkv):
            _decode_kernel[n_head, n_splits, n_seqs](
                qkv, cache, block_table, lengths, prefix_kv, prefix_starts, prefix_ids,
                parts, stats, *qkv.stride()[:3], *cache.stride()[:3], block_table.stride(0),
                *prefix_kv.stride()[:3], head_dim**-0.5, BLOCK_N=_BLOCK_N, SPLIT=SPLIT,
                ONE_SPLIT=n_splits == 1, num_warps=4, enable_fp_fusion=True, **sizes,
            )  # fmt: skip
            if n_splits > 1:
                _combine_kernel[n_head, n_seqs](
                    parts, stats, out, n_splits, num_warps=1, enable_fp_fusion=True, **sizes
                )
    return out


# A row of the cache may be written by one row of the batch and read by others only later.
decode = torch.library.custom_op("mingpt_prefix::decode_attention", mutates_args=("cache",))(
    launch_decode
)


@decode.register_fake
def _(qkv, cache, block_table, lengths, prefix_kv, prefix_starts, prefix_ids):
    n_seqs, _, n_head, head_dim = qkv.shape
    return qkv.new_empty(n_seqs, n_head, head_dim)
