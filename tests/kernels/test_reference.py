"""The reference attention against one query at a time, in float64: values and every gradient."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from mingpt_prefix.kernels import Layout, bind, bind_decode
from mingpt_prefix.kernels.reference import decode_attention, prefix_attention

N_HEAD, HEAD_DIM = 2, 3


@dataclass(frozen=True)
class Case:
    """A batch: lengths of sequences and prefixes, who sees which from where, tokens left over."""

    lengths: list[int]
    prefixes: list[int]
    ids: list[int]
    froms: list[int] = field(default_factory=list)
    tail: int = 0
    slack: int = 0  # by how much max_seq_len passes the longest sequence

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        froms = self.froms or [0] * len(self.lengths)
        return (
            offsets(self.lengths),
            offsets(self.prefixes),
            torch.tensor(self.ids, dtype=torch.int32),
            torch.tensor(froms, dtype=torch.int32),
            max(self.lengths, default=0) + self.slack,
        )

    def inputs(
        self, dtype: torch.dtype = torch.float64, head_dim: int = HEAD_DIM
    ) -> tuple[Tensor, Tensor]:
        """Random qkv (T, 3, H, D) and prefix_kv (2, R, H, D)."""
        generator = torch.Generator().manual_seed(0)
        n_tokens, n_rows = sum(self.lengths) + self.tail, sum(self.prefixes)
        shapes = (n_tokens, 3, N_HEAD, head_dim), (2, n_rows, N_HEAD, head_dim)
        qkv, kv = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
        return qkv.to(dtype).requires_grad_(), kv.to(dtype).requires_grad_()


def offsets(sizes: list[int]) -> Tensor:
    return torch.tensor([sum(sizes[:i]) for i in range(len(sizes) + 1)], dtype=torch.int32)


def one_query_at_a_time(qkv: Tensor, prefix_kv: Tensor, case: Case) -> Tensor:
    """What the contract says, said as slowly: for each query the list of keys it sees."""
    cu_seqlens, prefix_starts, ids, froms = (t.tolist() for t in case.arguments()[:4])
    out = torch.zeros_like(qkv[:, 0])
    for b, length in enumerate(case.lengths):
        for i in range(length):
            t = cu_seqlens[b] + i
            seen = [(qkv[s, 1], qkv[s, 2]) for s in range(cu_seqlens[b], t + 1)]
            if ids[b] >= 0 and i >= froms[b]:
                rows = range(prefix_starts[ids[b]], prefix_starts[ids[b] + 1])
                seen += [(prefix_kv[0, r], prefix_kv[1, r]) for r in rows]
            for h in range(N_HEAD):
                scores = torch.stack([qkv[t, 0, h] @ k[h] for k, _ in seen]) / HEAD_DIM**0.5
                weights = scores.exp() / scores.exp().sum()
                value = sum(w * v[h] for w, (_, v) in zip(weights, seen, strict=True))
                out = out.index_put((torch.tensor(t), torch.tensor(h)), value)
    return out


CASES = {
    "one prefix": Case([4, 4], [3], [0, 0]),
    "one prefix, ragged": Case([5, 1, 3], [2], [0, 0, 0]),
    "no prefix at all": Case([5, 1, 3], [], [-1, -1, -1]),
    "prefixes nobody sees": Case([5, 1, 3], [2, 1], [-1, -1, -1]),
    "several prefixes, one unused": Case([3, 2, 4, 1], [1, 4, 2], [2, 0, 2, -1]),
    "an empty prefix": Case([3, 2, 2], [2, 0, 1], [1, 0, 2]),
    "only empty prefixes": Case([3, 2], [0, 0], [1, 0]),
    "the last prefix is empty": Case([3, 2], [2, 0], [1, 0]),
    "from the middle": Case([5, 5, 4], [2, 3], [0, 0, 1], [2, 0, 3]),
    "from the last token, and never": Case([3, 3, 2], [2], [0, 0, 0], [2, 3, 9]),
    "from the middle, all alike": Case([4, 4], [2], [0, 0], [2, 2]),
    "empty sequences": Case([0, 3, 0, 0, 2, 0], [2, 1], [0, 1, -1, 1, 0, 0], [0, 1, 0, 5, 0, 0]),
    "only empty sequences": Case([0, 0], [2], [0, -1]),
    "only empty sequences, unused tokens": Case([0, 0], [2], [0, -1], tail=3),
    "no sequence": Case([], [2], []),
    "no sequence, unused tokens": Case([], [], [], tail=2),
    "unused tokens, all full": Case([3, 3], [2], [0, 0], tail=4),
    "many": Case(
        [2, 5, 0, 3, 1, 6, 2, 6, 3], [2, 0, 3], [0, 1, 2, -1, 0, 2, 0, 2, 1], [0, 1] * 4 + [2], 2
    ),
    "all at once": Case([4, 0, 2, 3], [2, 0, 3], [2, 0, 1, -1], [1, 0, 0, 0], tail=3, slack=2),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients(case: Case) -> None:
    qkv, kv = case.inputs()
    out = prefix_attention(qkv, kv, *case.arguments())
    expected = one_query_at_a_time(qkv, kv, case)
    assert out.shape == qkv[:, 0].shape and out.dtype == qkv.dtype
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert not out[sum(case.lengths) :].any()

    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    d_qkv, d_kv = torch.autograd.grad(out, (qkv, kv), d_out)
    anchor = 0 * qkv.sum() + 0 * kv.sum()
    want_qkv, want_kv = torch.autograd.grad((expected + anchor), (qkv, kv), d_out)
    for found, want in zip(d_qkv.unbind(1), want_qkv.unbind(1), strict=True):  # dq, dk, dv
        torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(d_kv, want_kv, rtol=1e-12, atol=1e-12)
    assert not d_qkv[sum(case.lengths) :].any()
    for number, (start, end) in enumerate(zip(*two_ends(case.prefixes), strict=True)):
        if number not in case.ids:
            assert not d_kv[:, start:end].any()


def two_ends(sizes: list[int]) -> tuple[list[int], list[int]]:
    starts = offsets(sizes).tolist()
    return starts[:-1], starts[1:]


def test_gradcheck() -> None:
    case = Case([3, 0, 2], [2, 1], [0, 1, 1], [1, 0, 0], tail=1)
    qkv, kv = case.inputs()
    assert torch.autograd.gradcheck(lambda *x: prefix_attention(*x, *case.arguments()), (qkv, kv))


def test_a_token_is_blind_to_others_sequences_and_to_its_future() -> None:
    case = CASES["all at once"]
    qkv, kv = case.inputs()
    with torch.no_grad():
        before = prefix_attention(qkv, kv, *case.arguments())
        changed = qkv.clone()
        changed[5:] = 100.0  # the last token of the third sequence, and all after it
        after = prefix_attention(changed, kv, *case.arguments())
    assert torch.equal(before[:5], after[:5]) and not torch.equal(before[5], after[5])


def test_unused_tokens_may_hold_anything() -> None:
    case = Case([3, 1], [2], [0, 0], tail=2)
    qkv, kv = case.inputs()
    qkv.data[4:] = torch.nan
    out = prefix_attention(qkv, kv, *case.arguments())
    d_qkv, d_kv = torch.autograd.grad(out.square().sum(), (qkv, kv))
    assert not out[4:].any() and not d_qkv[4:].any()
    assert out.isfinite().all() and d_qkv.isfinite().all() and d_kv.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_prefix_rows_of_another_dtype(dtype: torch.dtype) -> None:
    case = CASES["several prefixes, one unused"]
    qkv, kv = case.inputs()
    expected = prefix_attention(qkv, kv, *case.arguments())
    low, rows = qkv.detach().to(dtype), kv.detach().float().requires_grad_()
    out = prefix_attention(low, rows, *case.arguments())
    assert out.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.autograd.grad(out.sum(), rows)[0].dtype == torch.float32


def test_bind() -> None:
    case = CASES["all at once"]
    qkv, kv = case.inputs()
    cu_seqlens, prefix_starts, *rest = case.arguments()
    layout = Layout(cu_seqlens, *rest)
    attend = bind("reference", len(qkv), layout, prefix_starts)
    for scale in (1.0, 0.5):  # one plan, several layers
        expected = prefix_attention(scale * qkv, kv, *case.arguments())
        assert torch.equal(attend(scale * qkv, kv), expected)
    with pytest.raises(ValueError, match="'flash' is not one of triton, reference"):
        bind("flash", len(qkv), layout, prefix_starts)


DECODE = {
    "no prefix": Case([3, 1, 5], [], [-1, -1, -1]),
    "a prefix for each": Case([3, 1, 5, 2], [2, 0, 4], [2, 0, -1, 1]),
    "the first tokens": Case([1, 1], [2], [0, -1]),
    "no sequence": Case([], [2], []),
}


def test_bind_decode() -> None:
    """One plan serves several layers, and gradients may be on."""
    generator = torch.Generator().manual_seed(0)
    table, lengths = torch.tensor([[0, 1, 4], [2, 5, 5]]).int(), torch.tensor([2, 1]).int()
    layout = (table, lengths, offsets([3]), torch.tensor([0, -1]).int())
    attend = bind_decode("reference", 2, *layout)
    for _ in range(2):
        qkv, cache, kv = (
            torch.randn(shape, generator=generator)
            for shape in ((2, 3, 2, 4), (2, 6, 2, 4), (2, 3, 2, 4))
        )
        expected = decode_attention(qkv, cache.clone(), *layout[:2], kv, *layout[2:])
        found = attend(qkv.requires_grad_(), cache, kv)
        assert torch.equal(found, expected)
        assert torch.equal(cache[:, [4, 5]], qkv[:, 1:].transpose(0, 1))
    with pytest.raises(ValueError, match="'flash' is not one of triton, reference"):
        bind_decode("flash", 2, *layout)


@pytest.mark.parametrize("case", DECODE.values(), ids=DECODE)
def test_decoding_gives_the_last_row_of_the_whole(case: Case) -> None:
    """The cached tokens lie anywhere, and what no sequence has written yet is NaN."""
    qkv, kv = (x.detach() for x in case.inputs())
    n_seqs, width = len(case.lengths), max(case.lengths, default=0) + 2
    last = offsets(case.lengths)[1:].long() - 1
    n_slots = n_seqs * width
    slots = torch.randperm(n_slots, generator=torch.Generator().manual_seed(2))
    table = slots.view(n_seqs, width).to(torch.int32)
    cache = torch.full((2, n_slots, N_HEAD, HEAD_DIM), torch.nan, dtype=torch.float64)
    starts = offsets(case.lengths).tolist()
    for b, length in enumerate(case.lengths):
        cached = qkv[starts[b] : starts[b] + length - 1, 1:]
        cache[:, table[b, : length - 1].long()] = cached.transpose(0, 1)
        table[b, length:] = -1
    want_cache = cache.clone()
    for b, length in enumerate(case.lengths):
        want_cache[:, int(table[b, length - 1])] = qkv[last[b], 1:]

    lengths = torch.tensor(case.lengths, dtype=torch.int32) - 1
    _, prefix_starts, ids, _, _ = case.arguments()
    found = decode_attention(qkv[last], cache, table, lengths, kv, prefix_starts, ids)
    expected = prefix_attention(qkv, kv, *case.arguments())[last]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(cache.nan_to_num(nan=9.0), want_cache.nan_to_num(nan=9.0))


def test_decoding_shares_cached_tokens() -> None:
    """Two beams of one table: the same rows of the cache, then one new row each."""
    case = Case([4, 4], [3], [0, 0])
    qkv, kv = (x.detach() for x in case.inputs())
    qkv[4:7] = qkv[:3]
    cache = torch.full((2, 5, N_HEAD, HEAD_DIM), torch.nan, dtype=torch.float64)
    cache[:, :3] = qkv[:3, 1:].transpose(0, 1)
    table = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]])
    _, prefix_starts, ids, _, _ = case.arguments()
    found = decode_attention(
        qkv[[3, 7]], cache, table, torch.tensor([3, 3]), kv, prefix_starts, ids
    )
    expected = prefix_attention(qkv, kv, *case.arguments())[[3, 7]]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_called_prefix_is_seen_from_the_next_token_on() -> None:
    """Decoding with id -1 until the call, then with the prefix, is one pass with `prefix_from`."""
    case = Case([5], [2], [0], [3])
    qkv, kv = (x.detach() for x in case.inputs())
    expected = prefix_attention(qkv, kv, *case.arguments())
    cache = torch.full((2, 5, N_HEAD, HEAD_DIM), torch.nan, dtype=torch.float64)
    table, prefix_starts = torch.arange(5)[None], case.arguments()[1]
    for i in range(5):
        ids = torch.tensor([0 if i >= 3 else -1])
        found = decode_attention(
            qkv[i : i + 1], cache, table, torch.tensor([i]), kv, prefix_starts, ids
        )
        torch.testing.assert_close(found, expected[i : i + 1], rtol=1e-12, atol=1e-12)


def test_the_slow_loop_itself() -> None:
    """One head by hand: two equal scores give the mean of the values."""
    case = replace(CASES["one prefix"], lengths=[1], prefixes=[1], ids=[0])
    qkv, kv = (x.detach() for x in case.inputs())
    kv[0, 0] = qkv[0, 1]
    expected = (qkv[0, 2] + kv[1, 0]) / 2
    torch.testing.assert_close(one_query_at_a_time(qkv, kv, case)[0], expected)
