"""What the numbers of a batch are: layout, positions, targets, and the order of a run."""

from itertools import islice

import pytest
import torch
from torch import Tensor

from mingpt_prefix.batch import (
    Encoded,
    PrefixKV,
    batches,
    epoch_order,
    make_layout,
    make_positions,
    pack,
)
from mingpt_prefix.config import ModelConfig
from mingpt_prefix.data.encoding import encode_example, encode_prompt
from mingpt_prefix.data.tables import Example, parse_table
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.model import GPT2
from mingpt_prefix.step import SummedLoss


def encoded(*ids: int, context: int, offset: int = 0) -> Encoded:
    return Encoded(torch.tensor(ids), context, offset)


def rows(length: int, fill: float = 0.0) -> Tensor:
    """(L, 2, P, H, D)"""
    return torch.full((2, 2, length, 1, 3), fill)


# Layout and positions


def test_layout() -> None:
    layout = make_layout([3, 0, 2])
    assert layout.cu_seqlens.tolist() == [0, 3, 3, 5] and layout.max_seq_len == 3
    assert layout.prefix_ids.tolist() == [-1, -1, -1] and layout.prefix_from.tolist() == [0, 0, 0]
    layout = make_layout([3, 0, 2], [1, -1, 0], torch.tensor([2, 0, 1]))
    assert layout.prefix_ids.tolist() == [1, -1, 0] and layout.prefix_from.tolist() == [2, 0, 1]
    tensors = (layout.cu_seqlens, layout.prefix_ids, layout.prefix_from)
    assert all(tensor.dtype == torch.int32 for tensor in tensors)


def test_layout_of_nothing() -> None:
    layout = make_layout([])
    assert layout.cu_seqlens.tolist() == [0] and layout.max_seq_len == 0
    assert make_positions(layout).tolist() == []
    assert make_positions(layout, torch.tensor([4])).tolist() == []


def test_positions() -> None:
    layout = make_layout([3, 0, 2, 1], [1, 0, -1, 0])
    assert make_positions(layout).tolist() == [0, 1, 2, 0, 1, 0]
    lengths = torch.tensor([10, 20], dtype=torch.int32)
    assert make_positions(layout, lengths).tolist() == [20, 21, 22, 0, 1, 10]
    assert make_positions(layout, lengths).dtype == torch.int64
    assert make_positions(make_layout([2], [0]), torch.tensor([0])).tolist() == [0, 1]


def test_positions_do_not_depend_on_where_a_prefix_is_seen_from() -> None:
    late = make_layout([2, 2], [0, 0], [0, 1])
    assert make_positions(late).tolist() == [0, 1, 0, 1]
    assert make_positions(late, torch.tensor([5])).tolist() == [5, 6, 5, 6]


# Packing


def test_pack() -> None:
    batch = pack([encoded(1, 2, 3, 4, context=2), encoded(5, 6, context=1)])
    assert batch.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.positions.tolist() == [0, 1, 2, 3, 0, 1]
    assert batch.layout.cu_seqlens.tolist() == [0, 4, 6]
    assert batch.layout.prefix_ids.tolist() == [-1, -1]
    # Each target is predicted by the token before it, and by none of another example.
    assert batch.target_index.tolist() == [1, 2, 4]
    assert batch.target_tokens.tolist() == [3, 4, 6] and batch.n_targets == 3


def test_pack_with_a_prefix() -> None:
    batch = pack([encoded(1, 2, 3, context=2), encoded(4, 5, context=1)], prefix_length=7)
    assert batch.positions.tolist() == [7, 8, 9, 7, 8]
    assert batch.layout.prefix_ids.tolist() == [0, 0]
    assert batch.layout.prefix_from.tolist() == [0, 0]
    assert batch.target_index.tolist() == [1, 3]


def test_pack_with_a_prefix_each() -> None:
    examples = [encoded(1, 2, 3, context=2), encoded(4, 5, context=1)]
    batch = pack(examples, prefix_length=7, prefix_ids=[2, 0])
    assert batch.positions.tolist() == [7, 8, 9, 7, 8]
    assert batch.layout.prefix_ids.tolist() == [2, 0]


def test_pack_with_offsets_and_nothing_to_predict() -> None:
    batch = pack([encoded(1, 2, context=1, offset=30), encoded(3, 4, context=2)])
    assert batch.positions.tolist() == [30, 31, 0, 1]
    assert batch.target_tokens.tolist() == [2]


def test_examples_become_the_papers_text() -> None:
    tokenizer = load_tokenizer("tiny")
    table = parse_table("name[The Mill], eatType[pub]")
    prompt = encode_prompt(tokenizer, table)
    assert prompt[-1] == tokenizer.eos and tokenizer.eos not in prompt[:-1]
    assert tokenizer.decode(prompt[:-1]) == " name : The Mill | Type : pub"
    example = encode_example(tokenizer, Example(table, "The Mill is  a pub."))
    ids = example.ids.tolist()
    assert ids[: example.prompt_length] == prompt and ids[-1] == tokenizer.eos
    assert tokenizer.decode(ids[example.prompt_length : -1]) == " The Mill is a pub."
    assert example.n_targets == pack([example]).n_targets == len(ids) - len(prompt)


# Prefixes


def test_prefixes_are_packed() -> None:
    first, second = rows(2, 1.0).requires_grad_(), rows(3, 2.0)
    two = PrefixKV.pack([first, second])
    packed = PrefixKV.pack([two, rows(0), PrefixKV.from_tensor(rows(1, 3.0))])
    assert packed.starts.tolist() == [0, 2, 5, 5, 6] and packed.starts.dtype == torch.int32
    assert packed.lengths.tolist() == [2, 3, 0, 1]
    assert packed.kv[0, 0, :, 0, 0].tolist() == [1, 1, 2, 2, 2, 3]
    (gradient,) = torch.autograd.grad(packed.kv.sum(), first)
    assert torch.equal(gradient, torch.ones_like(first))
    assert packed.to(torch.float64).kv.dtype == torch.float64
    assert packed.to(torch.float64).starts.dtype == torch.int32


def test_prefixes_of_a_wrong_shape() -> None:
    with pytest.raises(ValueError, match="expected shape"):
        PrefixKV.from_tensor(torch.zeros(2, 3, 1, 1, 1))
    with pytest.raises(ValueError, match="at least one"):
        PrefixKV.pack([])


# Order


def test_the_order_is_a_function_of_n_seed_and_epoch() -> None:
    torch.manual_seed(1)
    first = epoch_order(50, seed=3, epoch=2)
    torch.manual_seed(2)
    torch.rand(5)
    assert torch.equal(first, epoch_order(50, seed=3, epoch=2))
    assert sorted(first.tolist()) == list(range(50))
    others = [epoch_order(50, s, e) for s, e in ((3, 1), (4, 2), (2, 3), (3, 0), (0, 0))]
    orders = {tuple(order.tolist()) for order in (first, *others)}
    assert len(orders) == 6
    state = torch.get_rng_state()
    epoch_order(50, seed=3, epoch=2)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("n", "size"), [(10, 3), (10, 5), (10, 10), (3, 10), (1, 1)])
def test_batches_go_on_where_they_left_off(n: int, size: int) -> None:
    per_epoch = -(-n // size)
    whole = list(islice(batches(n, size, seed=7), 3 * per_epoch))
    for first in range(2 * per_epoch + 1):
        resumed = islice(batches(n, size, seed=7, first_step=first), 3 * per_epoch - first)
        assert list(resumed) == whole[first:]
    for epoch in range(3):
        of_epoch = whole[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sum(of_epoch, []) == epoch_order(n, 7, epoch).tolist()
        assert all(len(batch) == size for batch in of_epoch[:-1])


def test_tokens_after_the_last_sequence_count_for_nothing() -> None:
    model = GPT2(ModelConfig(2, 2, 16, 61, 40, eos_token_id=60, tokenizer=None)).initialize(0)
    prefix = PrefixKV.from_tensor(torch.randn(2, 2, 3, 2, 8, requires_grad=True))
    batch = pack([encoded(1, 2, 3, 4, context=2), encoded(7, 8, context=1)], 3)
    longer = batch.with_tail(11)
    assert len(longer.tokens) == len(longer.positions) == 11
    assert longer.layout == batch.layout and longer.n_targets == batch.n_targets
    wanted = [prefix.kv, *model.parameters()]
    losses = [SummedLoss(model, autocasts=False)(each, prefix) for each in (batch, longer)]
    one, other = (torch.autograd.grad(loss, wanted) for loss in losses)
    torch.testing.assert_close(losses[1], losses[0])
    for mine, its in zip(other, one, strict=True):
        torch.testing.assert_close(mine, its)
    with pytest.raises(ValueError, match="n_tokens: 5 for 6 tokens"):
        batch.with_tail(5)
