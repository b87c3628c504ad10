"""What the Triton kernels share: loading rows, locating sequences and prefixes, block sizes."""

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

# Lower than any score, and finite: a query that has seen no key yet gives no NaN.
LOWEST = tl.constexpr(-1.0e30)
INFINITY = tl.constexpr(float("inf"))
# Exponentials are powers of 2, which is what the hardware computes.
LOG2_E = tl.constexpr(1.4426950408889634)

Pair = tuple[Tensor, Tensor]  # output (or the gradient of qkv) and log-sum-exp (or delta)

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def dot(b_left, b_right, b_sum=None):
    """b_left @ b_right + b_sum, added up in float32, and float32 not cut to TF32."""
    if _INTERPRETED:
        # Triton 3.9's interpreter multiplies the bits of bfloat16. The products are the same.
        b_left, b_right = b_left.to(tl.float32), b_right.to(tl.float32)
    if b_sum is None:  # Triton 3.2's tl.dot takes no None that was handed on to it
        return tl.dot(b_left, b_right, input_precision="ieee")
    else:
        return tl.dot(b_left, b_right, b_sum, input_precision="ieee")


@triton.jit
def load_rows(
    p_rows, first, n_rows, stride, D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """Rows first, first + 1, ... of the n_rows there are, (ROWS, COLS); 0 outside."""
    o_row, o_col = tl.arange(0, ROWS), tl.arange(0, COLS)
    m_in = (first + o_row < n_rows)[:, None] & (o_col < D)[None, :]
    p_first = p_rows + tl.cast(first, tl.int64) * stride
    return tl.load(p_first + o_row[:, None] * stride + o_col[None, :], mask=m_in, other=0.0)


@triton.jit
def store_rows(
    p_rows, b_rows, first, n_rows, stride, D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """The reverse of `load_rows`."""
    o_row, o_col = tl.arange(0, ROWS), tl.arange(0, COLS)
    m_in = (first + o_row < n_rows)[:, None] & (o_col < D)[None, :]
    p_first = p_rows + tl.cast(first, tl.int64) * stride
    p_all = p_first + o_row[:, None] * stride + o_col[None, :]
    tl.store(p_all, b_rows.to(p_rows.dtype.element_ty), mask=m_in)


@triton.jit
def clear_tail(
    p_rows, p_end, n_rows, stride, D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """Write 0 to the rows from number *p_end on, shared among the programs of the first axis."""
    b_zero = tl.zeros((ROWS, COLS), tl.float32)
    first = tl.load(p_end).to(tl.int32) + tl.program_id(0) * ROWS
    for row in range(first, n_rows, tl.num_programs(0) * ROWS):
        store_rows(p_rows, b_zero, row, n_rows, stride, D, ROWS, COLS)


@triton.jit
def locate_sequence(p_starts, seq):
    """A sequence's first token and its length."""
    start = tl.load(p_starts + seq).to(tl.int64)
    return start, (tl.load(p_starts + seq + 1) - start).to(tl.int32)


@triton.jit
def locate_prefix(p_starts, p_ids, seq):
    """The first row of a sequence's prefix and the number of its rows: 0 if it has no prefix."""
    prefix = tl.load(p_ids + seq).to(tl.int64)
    first = tl.load(p_starts + prefix, mask=prefix >= 0, other=0).to(tl.int64)
    end = tl.load(p_starts + prefix + 1, mask=prefix >= 0, other=0).to(tl.int64)
    return first, (end - first).to(tl.int32)


@triton.jit
def weights(
    b_left, b_right, b_d_left, b_d_right, b_lse, b_delta, m_seen, scale, MASKED: tl.constexpr
):
    """Attention weights and their scores' gradient, queries by keys or keys by queries.

    `left` and `right` are queries and keys or the reverse; `d_left` and `d_right` the output's
    gradient and the values. `lse` and `delta` are laid along the queries' side.
    """
    b_s = dot(b_left, tl.trans(b_right))
    if MASKED:
        b_s = tl.where(m_seen, b_s, -INFINITY)
    b_p = tl.exp2(b_s * scale - b_lse)
    b_dp = dot(b_d_left, tl.trans(b_d_right))
    return b_p, b_p * (b_dp - b_delta)


@dataclass(frozen=True)
class Tiles:
    """Block sizes: queries, keys, prefix rows, and the head size rounded up to a power of two.

    M is a multiple of N. In the backward pass a program holds blocks of M and loops over blocks of
    N. `stages` is how many blocks of the inner loop are in flight at once.
    """

    M: int
    N: int
    P: int
    D: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int | bool]:
        # Multiplication and addition fused, as every Triton before 3.10 does unasked.
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


def choose_tiles(qkv: Tensor, prefix_kv: Tensor, max_seq_len: int, forward: bool) -> Tiles:
    """Block sizes by what fits in registers and shared memory, and by the number of programs.

    float32 products are exact, hence without tensor cores, and keep everything in registers: small
    blocks. So do large heads. Short sequences (E2E's have 54 tokens on average) need little waste
    and many programs; long ones need large blocks, though in the backward pass its two sums limit
    them.
    """
    block_d = max(16, triton.next_power_of_2(qkv.shape[-1]))
    if qkv.dtype == torch.float32:
        sizes = (32, 32, 32, 4) if block_d <= 64 else (16, 16, 16, 4)
    elif block_d > 128:
        sizes = 32, 32, 32, 4
    elif block_d > 64 or max_seq_len <= 256:
        sizes = 64, 32, 32, 4
    else:
        sizes = (128, 64, 64, 8) if forward else (64, 64, 32, 4)
    return make_tiles(*sizes, 3, block_d, prefix_kv.shape[1])


def make_tiles(
    m: int, n: int, most_p: int, warps: int, stages: int, block_d: int, n_rows: int
) -> Tiles:
    """Blocks of these sizes; a short prefix gets a smaller block."""
    assert m % n == 0, (m, n)  # or the blocks of keys would not end at the diagonal
    block_p = min(max(16, triton.next_power_of_2(n_rows)), most_p)
    return Tiles(m, n, block_p, block_d, warps, stages)
