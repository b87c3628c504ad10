"""Prefix attention in Triton, forward and backward: packed sequences, prefix rows read in place.

Each program of the forward kernel computes one head of a block of one sequence's queries. It visits
the rows of the sequence's prefix first, then the sequence's own keys up to the diagonal, with the
online softmax of FlashAttention (Dao et al. 2022, algorithm 1), and saves one number per query: the
base-2 logarithm of the sum of exponentials. The backward pass recomputes the weights from it (Dao
2023, algorithm 2): one kernel for the queries' gradient, one for that of keys and values, and those
of `prefix_gradient` for the prefix rows. No two programs write to the same place: equal inputs give
equal bits.

An extra program, after those of the sequences, writes the zeros of unused tail rows, so that no
output has to be cleared first, and nothing is read back from the device.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mingpt_prefix.kernels.blocks import (
    INFINITY,
    LOG2_E,
    LOWEST,
    Pair,
    choose_tiles,
    clear_tail,
    dot,
    load_rows,
    locate_prefix,
    locate_sequence,
    store_rows,
    weights,
)
from mingpt_prefix.kernels.layout import Layout
from mingpt_prefix.kernels.prefix_gradient import launch_prefix_backward


@triton.jit
def _attend(b_q, b_k, b_v, m_seen, b_out, b_max, b_sum, scale, MASKED: tl.constexpr):
    """One step of the online softmax: a block of keys and values."""
    b_s = dot(b_q, tl.trans(b_k))
    if MASKED:
        b_s = tl.where(m_seen, b_s, -INFINITY)
    b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale)
    b_p = tl.exp2(b_s * scale - b_new[:, None])  # one instruction before the power
    b_fade = tl.exp2(b_max - b_new)
    b_sum = b_sum * b_fade + tl.sum(b_p, 1)
    b_out = dot(b_p.to(b_v.dtype), b_v, b_out * b_fade[:, None])
    return b_out, b_new, b_sum


@triton.jit(do_not_specialize=["n_tokens"])
def _forward_kernel(
    p_qkv, p_prefix, p_cu_seqlens, p_prefix_starts, p_prefix_ids, p_prefix_from, p_out, p_lse,
    qkv_token, qkv_part, qkv_head, prefix_part, prefix_row, prefix_head, n_tokens, scale,
    H: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # The last blocks have the most keys: they begin first.
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    head, seq = tl.program_id(1), tl.program_id(2)
    p_out += head * D
    if seq == tl.num_programs(2) - 1:
        clear_tail(p_out, p_cu_seqlens + seq, n_tokens, H * D, D, BLOCK_M, BLOCK_D)
        p_lse += tl.cast(head, tl.int64) * n_tokens
        clear_tail(p_lse, p_cu_seqlens + seq, n_tokens, 1, 1, BLOCK_M, 1)
        return
    start, length = locate_sequence(p_cu_seqlens, seq)
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
def _d_query(b_q, b_k, b_v, b_do, b_lse, b_delta, m_seen, b_dq, scale, MASKED: tl.constexpr):
    """What a block of keys and values adds to the queries' gradient, but for the scale."""
    _, b_ds = weights(b_q, b_k, b_do, b_v, b_lse, b_delta, m_seen, scale, MASKED)
    return dot(b_ds.to(b_k.dtype), b_k, b_dq)


@triton.jit(do_not_specialize=["n_tokens"])
def _query_kernel(
    p_qkv, p_prefix, p_cu_seqlens, p_prefix_starts, p_prefix_ids, p_prefix_from, p_out, p_lse,
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
            clear_tail(p_d, p_cu_seqlens + seq, n_tokens, 3 * H * D, D, BLOCK_M, BLOCK_D)
        return
    start, length = locate_sequence(p_cu_seqlens, seq)
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
        b_v = b_v.to(b_q.dtype)
        b_dq = _d_query(b_q, b_k, b_v, b_do, b_lse, b_delta, m_seen, b_dq, scale * LOG2_E, True)

    for n in range(0, first, BLOCK_N):
        b_k = load_rows(p_k, n, length, qkv_token, D, BLOCK_N, BLOCK_D)
        b_v = load_rows(p_v, n, length, qkv_token, D, BLOCK_N, BLOCK_D)
        b_dq = _d_query(b_q, b_k, b_v, b_do, b_lse, b_delta, None, b_dq, scale * LOG2_E, False)
    for n in range(first, tl.minimum(first + BLOCK_M, length), BLOCK_N):
        b_k = load_rows(p_k, n, length, qkv_token, D, BLOCK_N, BLOCK_D)
        b_v = load_rows(p_v, n, length, qkv_token, D, BLOCK_N, BLOCK_D)
        m_seen = o_m[:, None] >= (n + tl.arange(0, BLOCK_N))[None, :]
        b_dq = _d_query(b_q, b_k, b_v, b_do, b_lse, b_delta, m_seen, b_dq, scale * LOG2_E, True)

    p_dq = p_d_qkv + start * 3 * H * D
    store_rows(p_dq, b_dq * scale, first, length, 3 * H * D, D, BLOCK_M, BLOCK_D)


@triton.jit
def _d_key(
    b_k, b_v, b_dk, b_dv, p_q, p_do, p_lse, p_delta, o_key, n, length, qkv_token, d_out_token,
    scale, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add what BLOCK_N queries, from number n on, give the gradients of keys and values."""
    o_n = n + tl.arange(0, BLOCK_N)
    b_q = load_rows(p_q, n, length, qkv_token, D, BLOCK_N, BLOCK_D)
    b_do = load_rows(p_do, n, length, d_out_token, D, BLOCK_N, BLOCK_D)
    # 0, which Triton 3.2 can pipeline: a query outside has no d_out, and so adds nothing.
    b_lse = tl.load(p_lse + o_n, mask=o_n < length, other=0.0)[None, :]
    b_delta = tl.load(p_delta + o_n, mask=o_n < length, other=0.0)[None, :]
    m_seen = o_key[:, None] <= o_n[None, :]
    b_p, b_ds = weights(b_k, b_q, b_v, b_do, b_lse, b_delta, m_seen, scale, MASKED)
    b_dv = dot(b_p.to(b_do.dtype), b_do, b_dv)
    return dot(b_ds.to(b_q.dtype), b_q, b_dk), b_dv


@triton.jit(do_not_specialize=["n_tokens"])
def _key_kernel(
    p_qkv, p_cu_seqlens, p_lse, p_delta, p_d_out, p_d_qkv, qkv_token, qkv_part, qkv_head,
    d_out_token, d_out_head, n_tokens, scale, H: tl.constexpr, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradient of a block of BLOCK_M keys and values, over BLOCK_N queries at a time."""
    first = tl.program_id(0) * BLOCK_M
    head, seq = tl.program_id(1), tl.program_id(2)
    start, length = locate_sequence(p_cu_seqlens, seq)
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
    p_lse, p_delta = p_lse + o_first, p_delta + o_first
    if BLOCK_M == BLOCK_N:  # one block: a loop's pointers would pass the registers of an sm_80
        b_dk, b_dv = _d_key(
            b_k, b_v, b_dk, b_dv, p_q, p_do, p_lse, p_delta, o_key, first, length, qkv_token,
            d_out_token, scale * LOG2_E, D, BLOCK_N, BLOCK_D, True,
        )  # fmt: skip
    else:
        for n in range(first, tl.minimum(first + BLOCK_M, length), BLOCK_N):
            b_dk, b_dv = _d_key(
                b_k, b_v, b_dk, b_dv, p_q, p_do, p_lse, p_delta, o_key, n, length, qkv_token,
                d_out_token, scale * LOG2_E, D, BLOCK_N, BLOCK_D, True,
            )  # fmt: skip
    for n in range(first + BLOCK_M, length, BLOCK_N):
        b_dk, b_dv = _d_key(
            b_k, b_v, b_dk, b_dv, p_q, p_do, p_lse, p_delta, o_key, n, length, qkv_token,
            d_out_token, scale * LOG2_E, D, BLOCK_N, BLOCK_D, False,
        )  # fmt: skip
    p_dk = p_d_qkv + start * 3 * H * D + (H + head) * D
    store_rows(p_dk, b_dk * scale, first, length, 3 * H * D, D, BLOCK_M, BLOCK_D)
    store_rows(p_dk + H * D, b_dv, first, length, 3 * H * D, D, BLOCK_M, BLOCK_D)


def launch_forward(qkv: Tensor, prefix_kv: Tensor, layout: Layout, prefix_starts: Tensor) -> Pair:
    """The output (T, H, D) and the log-sum-exp (H, T), in base 2."""
    n_tokens, _, n_head, head_dim = qkv.shape
    out = qkv.new_empty(n_tokens, n_head, head_dim)
    lse = qkv.new_empty(n_head, n_tokens, dtype=torch.float32)
    if out.numel():
        tiles = choose_tiles(qkv, prefix_kv, layout.max_seq_len, forward=True)
        n_blocks = max(1, triton.cdiv(layout.max_seq_len, tiles.M))
        with torch.cuda.device_of(qkv):
            _forward_kernel[n_blocks, n_head, len(layout.cu_seqlens)](
                qkv, prefix_kv, layout.cu_seqlens, prefix_starts, layout.prefix_ids,
                layout.prefix_from, out, lse, *qkv.stride()[:3], *prefix_kv.stride()[:3],
                n_tokens, head_dim**-0.5, H=n_head, D=head_dim, BLOCK_M=tiles.M, BLOCK_N=tiles.N,
                BLOCK_P=tiles.P, BLOCK_D=tiles.D, **tiles.options,
            )  # fmt: skip
    return out, lse


def launch_backward(
    d_out: Tensor,
    qkv: Tensor,
    prefix_kv: Tensor,
    output: Pair,
    layout: Layout,
    prefix_starts: Tensor,
) -> Pair:
    """The gradient of qkv, (T, 3, H, D), and `delta` (H, T)."""
    n_tokens, _, n_head, head_dim = qkv.shape
    d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    delta = torch.empty_like(output[1])
    if d_qkv.numel():
        tiles = choose_tiles(qkv, prefix_kv, layout.max_seq_len, forward=False)
        n_blocks, n_seqs = max(1, triton.cdiv(layout.max_seq_len, tiles.M)), len(layout.prefix_ids)
        sizes = dict(H=n_head, D=head_dim, BLOCK_M=tiles.M, BLOCK_N=tiles.N, BLOCK_D=tiles.D)
        with torch.cuda.device_of(qkv):
            _query_kernel[n_blocks, n_head, n_seqs + 1](
                qkv, prefix_kv, layout.cu_seqlens, prefix_starts, layout.prefix_ids,
                layout.prefix_from, *output, d_out, d_qkv, delta, *qkv.stride()[:3],
                *prefix_kv.stride()[:3], *d_out.stride()[:2], n_tokens, head_dim**-0.5,
                BLOCK_P=tiles.P, **tiles.options, **sizes,
            )  # fmt: skip
            if n_seqs:
                _key_kernel[n_blocks, n_head, n_seqs](
                    qkv, layout.cu_seqlens, output[1], delta, d_out, d_qkv, *qkv.stride()[:3],
                    *d_out.stride()[:2], n_tokens, head_dim**-0.5,
                    **tiles.options, **sizes,
                )  # fmt: skip
    return d_qkv, delta


@torch.library.custom_op("mingpt_prefix::prefix_attention", mutates_args=())
def _attention(
    qkv: Tensor,
    prefix_kv: Tensor,
    cu_seqlens: Tensor,
    prefix_starts: Tensor,
    prefix_ids: Tensor,
    prefix_from: Tensor,
    max_seq_len: int,
) -> tuple[Tensor, Tensor]:
    layout = Layout(cu_seqlens, prefix_ids, prefix_from, max_seq_len)
    return launch_forward(qkv, prefix_kv, layout, prefix_starts)


@_attention.register_fake
def _(qkv, prefix_kv, cu_seqlens, prefix_starts, prefix_ids, prefix_from, max_seq_len):
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
    cu_seqlens: Tensor,
    prefix_starts: Tensor,
    prefix_ids: Tensor,
    prefix_from: Tensor,
    max_seq_len: int,
    of_qkv: bool,
    of_prefix: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of qkv and prefix_kv; one that is not wanted has 0 elements."""
    if d_out.stride(2) != 1:
        d_out = d_out.contiguous()  # a sum's gradient is one number, expanded to T * H * D
    layout = Layout(cu_seqlens, prefix_ids, prefix_from, max_seq_len)
    inputs = (d_out, qkv, prefix_kv, (out, lse), layout, prefix_starts)
    d_qkv, delta = launch_backward(*inputs) if of_qkv else (qkv.new_empty(0), None)
    if not of_prefix:
        return d_qkv, prefix_kv.new_empty(0)
    return d_qkv, launch_prefix_backward(*inputs, delta)


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


def attention(qkv: Tensor, prefix_kv: Tensor, layout: Layout, prefix_starts: Tensor) -> Tensor:
    """As `reference.prefix_attention`; arguments are checked by `kernels.bind`."""
    offsets = (layout.cu_seqlens, prefix_starts, layout.prefix_ids, layout.prefix_from)
    return _attention(qkv, prefix_kv, *offsets, layout.max_seq_len)[0]
