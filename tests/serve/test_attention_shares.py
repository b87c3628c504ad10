"""Shares of attention to the prefix, against a softmax that is written out."""

import math

import pytest
import torch
from serving import CONFIG
from torch import Tensor

from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.model import GPT2
from mingpt_prefix.serve.attention_heatmap import prefix_shares

LENGTHS = (3, 6)
IDS = [5, 17, 900, 4095, 3, 17, 2]


@pytest.fixture(scope="module")
def model() -> GPT2:
    model, generator = GPT2(CONFIG).double().eval(), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3, generator=generator)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def prefix() -> PrefixKV:
    generator = torch.Generator().manual_seed(1)
    shape = (CONFIG.n_layer, 2, sum(LENGTHS), CONFIG.n_head, CONFIG.head_dim)
    kv = torch.randn(*shape, generator=generator).double()
    return PrefixKV.pack(list(kv.split(LENGTHS, dim=2)))


def by_softmax(model: GPT2, prefix: PrefixKV, number: int, first: int | None) -> Tensor:
    """(L, H, T), from what each layer's `c_attn` wrote in an ordinary pass."""
    written, hooks = [], []
    for block in model.h:
        keep = lambda _module, _x, out: written.append(out)  # noqa: E731
        hooks.append(block.attn.c_attn.register_forward_hook(keep))
    model.logits([IDS], prefix, [number], None if first is None else [first])
    for hook in hooks:
        hook.remove()
    shares = []
    rows = slice(*prefix.starts[number : number + 2].tolist())
    for layer, qkv in enumerate(written):
        q, k, _ = qkv.view(len(IDS), 3, CONFIG.n_head, CONFIG.head_dim).permute(1, 2, 0, 3)
        front = prefix.kv[layer, 0, rows].transpose(0, 1)  # (H, P, D)
        to_prefix = q @ front.mT / math.sqrt(CONFIG.head_dim)  # (H, T, P)
        to_prefix[:, : first or 0] = -math.inf
        later = torch.ones(len(IDS), len(IDS), dtype=torch.bool).triu(1)
        own = (q @ k.mT / math.sqrt(CONFIG.head_dim)).masked_fill(later, -math.inf)
        weights = torch.cat([to_prefix, own], -1).softmax(-1)
        shares.append(weights[..., : front.shape[1]].sum(-1))
    return torch.stack(shares)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("first", [None, 0, 4])
def test_they_are_those_of_a_plain_softmax(model, prefix, number: int, first: int | None) -> None:
    found = prefix_shares(model, IDS, prefix, number, first)
    torch.testing.assert_close(found, by_softmax(model, prefix, number, first))
    assert found.shape == (CONFIG.n_layer, CONFIG.n_head, len(IDS))
    assert (found[..., : first or 0] == 0).all() and (found[..., first or 0 :] > 0).all()
    assert (found < 1).all() and found.std() > 0.01


def test_without_a_prefix_they_are_0(model, prefix) -> None:
    assert (prefix_shares(model, IDS, prefix, -1) == 0).all()


def test_even_attention(prefix) -> None:
    """Without weights every row that is seen gets the same."""
    bare = GPT2(CONFIG).double().eval()
    for parameter in bare.parameters():
        torch.nn.init.zeros_(parameter.data)
    for t, share in enumerate(prefix_shares(bare, IDS, prefix, 1)[1, 1].tolist()):
        assert share == pytest.approx(LENGTHS[1] / (LENGTHS[1] + t + 1))


@pytest.mark.parametrize(
    ("ids", "number", "what"),
    [
        ([], 0, "ids: expected at least one"),
        (IDS, 2, "prefix_id: 2 of 2 prefixes"),
        (IDS, -2, "prefix_id: -2 of 2 prefixes"),
        ([1] * CONFIG.n_positions, 0, "ids: position 130 passes the limit 128"),
    ],
)
def test_what_cannot_be(model, prefix, ids: list[int], number: int, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        prefix_shares(model, ids, prefix, number)


def test_a_prefix_of_another_shape(model) -> None:
    other = PrefixKV.from_tensor(torch.zeros(CONFIG.n_layer, 2, 3, CONFIG.n_head, 8))
    with pytest.raises(ValueError, match="prefix: expected shape"):
        prefix_shares(model, IDS, other)
