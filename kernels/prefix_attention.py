"""Prefix attention in Triton: packed sequences, prefix rows read where they lie, both directions.

A program of the forward kernel has a block of one sequence's queries and one head. It goes over the
rows of the sequence's prefix first, then over the sequence's own keys up to the diagonal, with the
online softmax of FlashAttention (Dao et al. 2022, algorithm 1), and keeps one number a query: the
base-2 logarithm of the sum of exponentials. The backward pass computes the weights again from it
(Dao 2023, algorithm 2): one kernel for the queries' gradient, one for that of keys and values, and
one for the prefix rows, whose gradient is a sum over all sequences that used them. That sum is cut
into splits, as many as the shapes alone say, whose partial sums are added in a fixed order: equal
inputs give equal bits.

One more program than there are sequences writes the zeros of unused tail rows, so that no output
needs to be cleared, and nothing is read back from the device.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mingpt_prefix.kernels.blocks import (
    INFINITY,
    LOG2_E,
    LOWEST,
    choose_tiles,
    clear_tail,
    dot,
    load_rows,
    locate_prefix,
    locate_sequence,
    store_rows,
)

# seq_starts, prefix_starts, prefix_ids, prefix_from
_Layout = tuple[Tensor, Tensor, Tensor, Tensor]
_Pair = tuple[Tensor, Tensor]  # output and log-sum-exp

# Programs that a large GPU runs at once; fixed, so that a gradient does not depend on the machine.
_PROGRAMS = 256


@triton.jit
def _attend(b_q, b_k, b_v, m_seen, b_out, b_max, b_sum, scale, MASKED: tl.constexpr):
    """One step of the online softmax: a block of keys and values."""
    b_s = dot(b_q, tl.trans(b_k)) * scale
    if MASKED:
        b_s = tl.where(m_seen, b_s, -INFINITY)
    b_new = tl.maximum(b_max, tl.max(b_s, 1))
    b_p = tl.exp2(b_s - b_new[:, None])
    b_fade = tl.exp2(b_max - b_new)
    b_sum = b_sum * b_fade + tl.sum(b_p, 1)
    b_out = dot(b_p.to(b_v.dtype), b_v, b_out * b_fade[:, None])
    return b_out, b_new, b_sum


@triton.jit(do_not_specialize=["n_tokens"])
def _forward_kernel(
    p_qkv, p_prefix, p_seq_starts, p_prefix_starts, p_prefix_ids, p_prefix_from, p_out, p_lse,
    qkv_token, qkv_part, qkv_head, prefix_part, prefix_row, prefix_head, n_tokens, scale,
    H: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # The last blocks have the most keys: they begin first.
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    head, seq = tl.program_id(1), tl.program_id(2)
    p_out += head * D
    if seq == tl.num_programs(2) - 1:
        clear_tail(p_out, p_seq_starts + seq, n_tokens, H * D, D, BLOCK_M, BLOCK_D)
        p_lse += tl.cast(head, tl.int64) * n_tokens
        clear_tail(p_lse, p_seq_starts + seq, n_tokens, 1, 1, BLOCK_M, 1)
        return
    start, length = locate_sequence(p_seq_starts, seq)
    if first >= length:
        return
    p_q = p_qkv + start * qkv_token + head * qkv_head
    p_k, p_v = p_q + qkv_part, p_q + 2 * qkv_part
    o_m = first + tl.arange(0, BLOCK_M)
    b_q = load_rows(p_q, first, length, qkv_token, D, BLOCK_M, BLOCK_D)
    b_out = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    b_max = tl.full((BLOCK_M,), LOWEST, tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    scale *= LOG2_E

    seen_from = tl.load(p_prefix_from + seq)
    row, n_rows = locate_prefix(p_prefix_starts, p_prefix_ids, seq)
    n_rows = tl.where(seen_from < tl.minimum(first + BLOCK_M, length), n_rows, 0)
    p_pk = p_prefix + row * prefix_row + head * prefix_head
    for n in range(0, n_rows, BLOCK_P):
        b_k = load_rows(p_pk, n, n_rows, prefix_row, D, BLOCK_P, BLOCK_D).to(b_q.dtype)
        b_v = load_rows(p_pk + prefix_part, n, n_rows, prefix_row, D, BLOCK_P, BLOCK_D)
        o_n = n + tl.arange(0, BLOCK_P)
        m_seen = (o_m >= seen_from)[:, None] & (o_n < n_rows)[None, :]
        b_v = b_v.to(b_q.dtype)
        b_out, b_max, b_sum = _attend(b_q, b_k, b_v, m_seen, b_out, b_max, b_sum, scale, True)

    for n in range(0, first, BLOCK_N):
        b_k = load_rows(p_k, n, length, qkv_token, D, BLOCK_N, BLOCK_D)
        b_v = load_rows(p_v, n, length, qkv_token, D, BLOCK_N, BLOCK_D)
        b_out, b_max, b_sum = _attend(b_q, b_k, b_v, None, b_out, b_max, b_sum, scale, False)
    for n in range(first, tl.minimum(first + BLOCK_M, length), BLOCK_N):
        b_k = load_rows(p_k, n, length, qkv_token, D, BLOCK_N, BLOCK_D)
        b_v = load_rows(p_v, n, length, qkv_token, D, BLOCK_N, BLOCK_D)
        m_seen = o_m[:, None] >= (n + tl.arange(0, BLOCK_N))[None, :]
        b_out, b_max, b_sum = _attend(b_q, b_k, b_v, m_seen, b_out, b_max, b_sum, scale, True)

    store_rows(p_out + start * H * D, b_out / b_sum[:, None], first, length, H * D, D,
               BLOCK_M, BLOCK_D)  # fmt: skip
    p_lse += tl.cast(head, tl.int64) * n_tokens + start
    tl.store(p_lse + o_m, b_max + tl.log2(b_sum), mask=o_m < length)


@triton.jit
def _weights(b_left, b_right, b_d_left, b_d_right, b_lse, b_delta, m_seen, scale):
    """Attention weights and their scores' gradient, queries by keys or keys by queries.

    `left` and `right` are queries and keys or the reverse; `d_left` and `d_right` the output's
    gradient and the values. `lse` and `delta` are laid along the queries' side.
    """
    b_s = dot(b_left, tl.trans(b_right)) * scale
    b_p = tl.exp2(tl.where(m_seen, b_s, -INFINITY) - b_lse)
    b_dp = dot(b_d_left, tl.trans(b_d_right))
    return b_p, b_p * (b_dp - b_delta)


@triton.jit(do_not_specialize=["n_tokens"])
def _query_kernel(
    p_qkv, p_prefix, p_seq_starts, p_prefix_starts, p_prefix_ids, p_prefix_from, p_out, p_lse,
    p_d_out, p_d_qkv, p_delta, qkv_token, qkv_part, qkv_head, prefix_part, prefix_row,
    prefix_head, d_out_token, d_out_head, n_tokens, scale, H: tl.constexpr, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The queries' gradient; on the way `delta`, each query's sum of output * its gradient."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    head, seq = tl.program_id(1), tl.program_id(2)
    p_d_qkv += head * D
    if seq == tl.num_programs(2) - 1:
        for part in range(3):
            p_d = p_d_qkv + part * H * D
            clear_tail(p_d, p_seq_starts + seq, n_tokens, 3 * H * D, D, BLOCK_M, BLOCK_D)
        return
    start, length = locate_sequence(p_seq_starts, seq)
    if first >= length:
        return
    p_q = p_qkv + start * qkv_token + head * qkv_head
    p_k, p_v = p_q + qkv_part, p_q + 2 * qkv_part
    p_o, p_do = p_out + start * H * D + head * D, p_d_out + start * d_out_token + head * d_out_head
    o_m = first + tl.arange(0, BLOCK_M)
    b_q = load_rows(p_q, first, length, qkv_token, D, BLOCK_M, BLOCK_D)
    b_do = load_rows(p_do, first, length, d_out_token, D, BLOCK_M, BLOCK_D)
    b_o = load_rows(p_o, first, length, H * D, D, BLOCK_M, BLOCK_D)
    o_lse = tl.cast(head, tl.int64) * n_tokens + start + o_m
    b_delta = tl.sum(b_o.to(tl.float32) * b_do.to(tl.float32), 1)
    tl.store(p_delta + o_lse, b_delta, mask=o_m < length)
    b_delta = b_delta[:, None]
    b_lse = tl.load(p_lse + o_lse, mask=o_m < length, other=INFINITY)[:, None]
    b_dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)

    seen_from = tl.load(p_prefix_from + seq)
    row, n_rows = locate_prefix(p_prefix_starts, p_prefix_ids, seq)
    n_rows = tl.where(seen_from < tl.minimum(first + BLOCK_M, length), n_rows, 0)
    p_pk = p_prefix + row * prefix_row + head * prefix_head
    for n in range(0, n_rows, BLOCK_P):
        b_k = load_rows(p_pk, n, n_rows, prefix_row, D, BLOCK_P, BLOCK_D).to(b_q.dtype)
        b_v = load_rows(p_pk + prefix_part, n, n_rows, prefix_row, D, BLOCK_P, BLOCK_D)
        o_n = n + tl.arange(0, BLOCK_P)
        m_seen = (o_m >= seen_from)[:, None] & (o_n < n_rows)[None, :]
        _, b_ds = _weights(
            b_q, b_k, b_do, b_v.to(b_q.dtype), b_lse, b_delta, m_seen, scale * LOG2_E
        )
        b_dq = dot(b_ds.to(b_k.dtype), b_k, b_dq)

    for n in range(0, tl.minimum(first + BLOCK_M, length), BLOCK_N):
        b_k = load_rows(p_k, n, length, qkv_token, D, BLOCK_N, BLOCK_D)
        b_v = load_rows(p_v, n, length, qkv_token, D, BLOCK_N, BLOCK_D)
        m_seen = o_m[:, None] >= (n + tl.arange(0, BLOCK_N))[None, :]
        _, b_ds = _weights(b_q, b_k, b_do, b_v, b_lse, b_delta, m_seen, scale * LOG2_E)
        b_dq = dot(b_ds.to(b_k.dtype), b_k, b_dq)

    p_dq = p_d_qkv + start * 3 * H * D
    store_rows(p_dq, b_dq * scale, first, length, 3 * H * D, D, BLOCK_M, BLOCK_D)


@triton.jit(do_not_specialize=["n_tokens"])
def _key_kernel(
    p_qkv, p_seq_starts, p_lse, p_delta, p_d_out, p_d_qkv, qkv_token, qkv_part, qkv_head,
    d_out_token, d_out_head, n_tokens, scale, H: tl.constexpr, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradient of a block of BLOCK_M keys and values, over BLOCK_N queries at a time."""
    first = tl.program_id(0) * BLOCK_M
    head, seq = tl.program_id(1), tl.program_id(2)
    start, length = locate_sequence(p_seq_starts, seq)
    if first >= length:
        return
    p_q = p_qkv + start * qkv_token + head * qkv_head
    p_do = p_d_out + start * d_out_token + head * d_out_head
    o_key = first + tl.arange(0, BLOCK_M)
    o_first = tl.cast(head, tl.int64) * n_tokens + start
    b_k = load_rows(p_q + qkv_part, first, length, qkv_token, D, BLOCK_M, BLOCK_D)
    b_v = load_rows(p_q + 2 * qkv_part, first, length, qkv_token, D, BLOCK_M, BLOCK_D)
    b_dk = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    b_dv = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for n in range(first, length, BLOCK_N):
        o_n = n + tl.arange(0, BLOCK_N)
        b_q = load_rows(p_q, n, length, qkv_token, D, BLOCK_N, BLOCK_D)
        b_do = load_rows(p_do, n, length, d_out_token, D, BLOCK_N, BLOCK_D)
        # 0, which Triton 3.2 can pipeline: a query outside has no d_out, and so adds nothing.
        b_lse = tl.load(p_lse + o_first + o_n, mask=o_n < length, other=0.0)[None, :]
        b_delta = tl.load(p_delta + o_first + o_n, mask=o_n < length, other=0.0)[None, :]
        m_seen = o_key[:, None] <= o_n[None, :]
        b_p, b_ds = _weights(b_k, b_q, b_v, b_do, b_lse, b_delta, m_seen, scale * LOG2_E)
        b_dv = dot(b_p.to(b_do.dtype), b_do, b_dv)
        b_dk = dot(b_ds.to(b_q.dtype), b_q, b_dk)
    p_dk = p_d_qkv + start * 3 * H * D + (H + head) * D
    store_rows(p_dk, b_dk * scale, first, length, 3 * H * D, D, BLOCK_M, BLOCK_D)
    store_rows(p_dk + H * D, b_dv, first, length, 3 * H * D, D, BLOCK_M, BLOCK_D)


_COUNTS = ["n_tokens", "n_rows", "n_units", "units_per_split", "blocks_per_seq"]


@triton.jit(do_not_specialize=_COUNTS)
def _prefix_kernel(
    p_qkv, p_prefix, p_seq_starts, p_prefix_starts, p_prefix_ids, p_prefix_from, p_out, p_lse,
    p_d_out, p_sums, qkv_token, qkv_head, prefix_part, prefix_row, prefix_head, d_out_token,
    d_out_head, n_tokens, n_rows, n_units, units_per_split, blocks_per_seq, scale,
    H: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradient of BLOCK_P prefix rows, of whichever prefixes, over one split's queries.

    A unit is a block of BLOCK_M queries of one sequence; a split has units_per_split of them.
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
        start, length = locate_sequence(p_seq_starts, seq)
        own, n_own = locate_prefix(p_prefix_starts, p_prefix_ids, seq)
        seen_from = tl.load(p_prefix_from + seq)
        late = seen_from < tl.minimum(m + BLOCK_M, length)
        if late & (m < length) & (own < row + BLOCK_P) & (own + n_own > row):
            o_m = m + tl.arange(0, BLOCK_M)
            p_q = p_qkv + start * qkv_token + head * qkv_head
            p_o = p_out + start * H * D + head * D
            p_do = p_d_out + start * d_out_token + head * d_out_head
            b_q = load_rows(p_q, m, length, qkv_token, D, BLOCK_M, BLOCK_D)
            b_o = load_rows(p_o, m, length, H * D, D, BLOCK_M, BLOCK_D)
            b_do = load_rows(p_do, m, length, d_out_token, D, BLOCK_M, BLOCK_D)
            b_delta = tl.sum(b_o.to(tl.float32) * b_do.to(tl.float32), 1)[None, :]
            p_sum = p_lse + tl.cast(head, tl.int64) * n_tokens + start
            b_lse = tl.load(p_sum + o_m, mask=o_m < length, other=INFINITY)[None, :]
            m_own = (o_row >= own) & (o_row < own + n_own)
            m_seen = m_own[:, None] & (o_m >= seen_from)[None, :]
            b_p, b_ds = _weights(b_k, b_q, b_v, b_do, b_lse, b_delta, m_seen, scale * LOG2_E)
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


def launch_forward(qkv: Tensor, prefix_kv: Tensor, layout: _Layout, max_seq_len: int) -> _Pair:
    """The output (T, H, D) and the log-sum-exp (H, T), in base 2."""
    n_tokens, _, n_head, head_dim = qkv.shape
    out = qkv.new_empty(n_tokens, n_head, head_dim)
    lse = qkv.new_empty(n_head, n_tokens, dtype=torch.float32)
    if out.numel():
        tiles = choose_tiles(qkv, prefix_kv, max_seq_len, forward=True)
        grid = (max(1, triton.cdiv(max_seq_len, tiles.M)), n_head, len(layout[0]))
        with torch.cuda.device_of(qkv):
            _forward_kernel[grid](
                qkv, prefix_kv, *layout, out, lse,
                *qkv.stride()[:3], *prefix_kv.stride()[:3], n_tokens, head_dim**-0.5,
                H=n_head, D=head_dim, BLOCK_M=tiles.M, BLOCK_N=tiles.N, BLOCK_P=tiles.P,
                BLOCK_D=tiles.D, **tiles.options,
            )  # fmt: skip
    return out, lse


def launch_backward(
    d_out: Tensor, qkv: Tensor, prefix_kv: Tensor, output: _Pair, layout: _Layout, max_seq_len: int
) -> Tensor:
    """The gradient of qkv, (T, 3, H, D)."""
    n_tokens, _, n_head, head_dim = qkv.shape
    d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    delta = torch.empty_like(output[1])
    if d_qkv.numel():
        tiles = choose_tiles(qkv, prefix_kv, max_seq_len, forward=False)
        n_blocks = max(1, triton.cdiv(max_seq_len, tiles.M))
        sizes = dict(H=n_head, D=head_dim, BLOCK_M=tiles.M, BLOCK_N=tiles.N, BLOCK_D=tiles.D)
        with torch.cuda.device_of(qkv):
            _query_kernel[n_blocks, n_head, len(layout[0])](
                qkv, prefix_kv, *layout, *output,
                d_out, d_qkv, delta, *qkv.stride()[:3], *prefix_kv.stride()[:3],
                *d_out.stride()[:2], n_tokens, head_dim**-0.5,
                BLOCK_P=tiles.P, **tiles.options, **sizes,
            )  # fmt: skip
            if len(layout[0]) > 1:
                _key_kernel[n_blocks, n_head, len(layout[0]) - 1](
                    qkv, layout[0], output[1], delta, d_out, d_qkv, *qkv.stride()[:3],
                    *d_out.stride()[:2], n_tokens, head_dim**-0.5,
                    **tiles.options, **sizes,
                )  # fmt: skip
    return d_qkv


def launch_prefix_backward(
    d_out: Tensor, qkv: Tensor, prefix_kv: Tensor, output: _Pair, layout: _Layout, max_seq_len: int
) -> Tensor:
    """The gradient of prefix_kv, (2, R, H, D), in its dtype."""
    (n_tokens, _, n_head, head_dim), n_rows = qkv.shape, prefix_kv.shape[1]
    d_prefix = torch.empty_like(prefix_kv, memory_format=torch.contiguous_format)
    if d_prefix.numel():
        tiles = choose_tiles(qkv, prefix_kv, max_seq_len, forward=False)
        n_blocks, per_seq = triton.cdiv(n_rows, tiles.P), triton.cdiv(max_seq_len, tiles.M)
        n_units = (len(layout[0]) - 1) * per_seq
        wanted = max(1, min(n_units, _PROGRAMS // (n_blocks * n_head)))
        per_split = max(1, triton.cdiv(n_units, wanted))
        n_splits = max(1, triton.cdiv(n_units, per_split))
        sums = d_prefix  # one split: no other to add
        if n_splits > 1:
            sums = d_prefix.new_empty(n_splits, *d_prefix.shape, dtype=torch.float32)
        with torch.cuda.device_of(qkv):
            _prefix_kernel[n_blocks, n_head, n_splits](
                qkv, prefix_kv, *layout, *output,
                d_out, sums, qkv.stride(0), qkv.stride(2), *prefix_kv.stride()[:3],
                *d_out.stride()[:2], n_tokens, n_rows, n_units, per_split, max(1, per_seq),
                head_dim**-0.5, H=n_head, D=head_dim, BLOCK_M=tiles.M, BLOCK_P=tiles.P,
                BLOCK_D=tiles.D, **tiles.options,
            )  # fmt: skip
            if n_splits > 1:
                size = d_prefix.numel()
                grid = (triton.cdiv(size, 512),)
                _add_kernel[grid](sums, d_prefix, size, n_splits, BLOCK=512, enable_fp_fusion=True)
    return d_prefix


@torch.library.custom_op("mingpt_prefix::prefix_attention", mutates_args=())
def _attention(
    qkv: Tensor,
    prefix_kv: Tensor,
    seq_starts: Tensor,
    prefix_starts: Tensor,
    prefix_ids: Tensor,
    prefix_from: Tensor,
    max_seq_len: int,
) -> tuple[Tensor, Tensor]:
    layout = (seq_starts, prefix_starts, prefix_ids, prefix_from)
    return launch_forward(qkv, prefix_kv, layout, max_seq_len)


@_attention.register_fake
def _(qkv, prefix_kv, seq_starts, prefix_starts, prefix_ids, prefix_from, max_seq_len):
    n_tokens, _, n_head, head_dim = qkv.shape
    lse = qkv.new_empty(n_head, n_tokens, dtype=torch.float32)
    return qkv.new_empty(n_tokens, n_head, head_dim), lse


@torch.library.custom_op("mingpt_prefix::prefix_attention_backward", mutates_args=())
def _gradients(
    d_out: Tensor,
    qkv: Tensor,
    prefix_kv: Tensor,
    out: Tensor,
    lse: Tensor,
    seq_starts: Tensor,
    prefix_starts: Tensor,
    prefix_ids: Tensor,
    prefix_from: Tensor,
    max_seq_len: int,
    of_qkv: bool,
    of_prefix: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of qkv and prefix_kv; of 0 elements where they are not wanted."""
    if d_out.stride(2) != 1:
        d_out = d_out.contiguous()  # a sum's gradient is one number, seen T * H * D times
    layout = (seq_starts, prefix_starts, prefix_ids, prefix_from)
    inputs = (d_out, qkv, prefix_kv, (out, lse), layout, max_seq_len)
    return (
        launch_backward(*inputs) if of_qkv else qkv.new_empty(0),
        launch_prefix_backward(*inputs) if of_prefix else prefix_kv.new_empty(0),
    )


@_gradients.register_fake
def _(d_out, qkv, prefix_kv, out, lse, s, p, i, f, max_seq_len, of_qkv, of_prefix):
    return (
        qkv.new_empty(qkv.shape if of_qkv else 0),
        prefix_kv.new_empty(prefix_kv.shape if of_prefix else 0),
    )


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.max_seq_len = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, d_out, _):
    qkv, prefix_kv, *layout, out, lse = ctx.saved_tensors
    if d_out is None:
        return (None,) * 7
    of_qkv, of_prefix = ctx.needs_input_grad[:2]
    d_qkv, d_prefix = _gradients(
        d_out, qkv, prefix_kv, out, lse, *layout, ctx.max_seq_len, of_qkv, of_prefix
    )
    return d_qkv if of_qkv else None, d_prefix if of_prefix else None, *(None,) * 5


_attention.register_autograd(_backward, setup_context=_save)


def prefix_attention(
    qkv: Tensor,
    prefix_kv: Tensor,
    seq_starts: Tensor,
    prefix_starts: Tensor,
    prefix_ids: Tensor,
    prefix_from: Tensor,
    max_seq_len: int,
) -> Tensor:
    """As `reference.prefix_attention`; arguments are checked by `kernels.prefix_attention`."""
    layout = (seq_starts, prefix_starts, prefix_ids, prefix_from)
    return _attention(qkv, prefix_kv, *layout, max_seq_len)[0]
