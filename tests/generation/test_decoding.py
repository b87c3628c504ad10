"""Decoding: token for token what transformers' `generate` gives, alone or behind PEFT's prefix.

The peers run one prompt at a time, unpadded; ours run in ragged batches.
"""

import math
from collections import Counter

import pytest
import torch
from decoding_peers import (
    CONFIG,
    EOS,
    MOST,
    SHAPE,
    assert_ending,
    assert_varied,
    make_model,
    make_peer,
    make_prefix,
    make_prompts,
    theirs,
)
from torch import Tensor

from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.errors import ConfigError, PrefixError
from mingpt_prefix.generation.decoding import generate
from mingpt_prefix.model import GPT2

# PEFT calls transformers in ways that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def model() -> GPT2:
    return make_model()


@pytest.fixture(scope="module")
def prefix() -> PrefixKV:
    return make_prefix()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return make_prompts()


# The same tokens as the peers


@pytest.mark.parametrize("beams", [1, 5])
def test_same_tokens_as_transformers(model, prefix, prompts, beams: int) -> None:
    ours = generate(model, prompts, prefix, beams=beams, max_new_tokens=MOST)
    peer = make_peer(model, prefix)
    assert_varied(ours)
    assert_ending(ours)
    assert len(ours) == 50
    assert ours == [theirs(peer, prompt, num_beams=beams) for prompt in prompts]


@pytest.mark.parametrize("beams", [1, 5])
def test_same_tokens_without_end_tokens(model, prefix, prompts, beams: int) -> None:
    ours = generate(model, prompts, prefix, beams=beams, max_new_tokens=25, eos=None)
    peer = make_peer(model, prefix)
    assert_varied(ours)
    assert any(EOS in ids for ids in ours) and len(ours) == 50
    rules = dict(num_beams=beams, max_new_tokens=25)
    assert ours == [theirs(peer, prompt, None, **rules) for prompt in prompts]


@pytest.mark.parametrize("beams", [1, 5])
def test_same_tokens_without_a_prefix(model, prompts, beams: int) -> None:
    ours = generate(model, prompts[:20], beams=beams, max_new_tokens=MOST)
    peer = make_peer(model, None)
    assert_varied(ours)
    assert ours == [theirs(peer, prompt, num_beams=beams) for prompt in prompts[:20]]


@pytest.mark.parametrize(
    ("beams", "length_penalty", "most", "eos"),
    [
        (5, 0.0, 20, EOS),
        (3, 2.0, 20, EOS),
        (4, -1.0, 12, EOS),
        (2, 1.0, 1, EOS),
    ],
)
def test_same_beams_under_other_rules(
    model, prefix, prompts, beams: int, length_penalty: float, most: int, eos: int | None
) -> None:
    peer = make_peer(model, prefix)
    rules = dict(length_penalty=length_penalty, max_new_tokens=most, eos=eos)
    ours = generate(model, prompts[:12], prefix, beams=beams, **rules)
    rules["num_beams"] = beams
    assert ours == [theirs(peer, prompt, **rules) for prompt in prompts[:12]]


# The same tokens as without a cache, and in whatever batch


class Uncached:
    """What `KVCache` does, by running all tokens of every row through the model at each step."""

    def __init__(self, model, prompts, prefix, prefix_ids, limits, prefix_from) -> None:
        self.model, self.prefix, self.rows = model, prefix, [list(ids) for ids in prompts]
        assert set(prefix_ids) == {0} and prefix_from is None
        self.run()

    def run(self) -> None:
        rows = self.model.logits(self.rows, self.prefix)
        self.logits = torch.stack([logits[-1] for logits in rows]).float()

    def step(self, tokens: Tensor) -> None:
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.append(token)
        self.run()

    def keep(self, rows: Tensor) -> None:
        self.rows, self.logits = [list(self.rows[i]) for i in rows], self.logits[rows]


@pytest.mark.parametrize(
    "how", [{}, {"beams": 5}, {"temperature": 1.0}], ids=["greedy", "beams", "sample"]
)
def test_cached_is_as_uncached(model, prefix, prompts, how: dict, monkeypatch) -> None:
    ours = generate(model, prompts[:20], prefix, max_new_tokens=MOST, **how)
    assert_varied(ours)
    monkeypatch.setattr("mingpt_prefix.generation.decoding.KVCache", Uncached)
    assert generate(model, prompts[:20], prefix, max_new_tokens=MOST, **how) == ours


@pytest.mark.parametrize(
    "how", [{}, {"beams": 4}, {"temperature": 1.3, "top_p": 0.9}], ids=["greedy", "beams", "sample"]
)
def test_a_row_does_not_depend_on_its_batch(model, prefix, prompts, how: dict) -> None:
    together = generate(model, prompts, prefix, max_new_tokens=20, batch_size=32, **how)
    alone = generate(model, prompts, prefix, max_new_tokens=20, batch_size=1, **how)
    assert together == alone
    backwards = generate(model, prompts[::-1], prefix, max_new_tokens=20, batch_size=7, **how)
    assert backwards[::-1] == together
    assert [generate(model, [p], prefix, max_new_tokens=20, **how)[0] for p in prompts] == together


@pytest.mark.parametrize("beams", [1, 3])
def test_each_row_its_prefix(model, prefix, prompts, beams: int) -> None:
    generator = torch.Generator().manual_seed(1)
    longer = torch.randn(*SHAPE[:2], 7, *SHAPE[3:], generator=generator, dtype=torch.double)
    both = PrefixKV.pack([prefix, longer])
    ids = [0, 1, -1] * 4
    ours = generate(model, prompts[:12], both, ids, beams=beams, max_new_tokens=15)
    fronts = [prefix, PrefixKV.from_tensor(longer), None]
    for prompt, i, new in zip(prompts, ids, ours, strict=False):
        assert new == generate(model, [prompt], fronts[i], beams=beams, max_new_tokens=15)[0]


def test_other_forms_of_arguments(model, prefix, prompts) -> None:
    expected = generate(model, prompts[:3], prefix)
    as_tensors = [torch.tensor(prompt) for prompt in prompts[:3]]
    assert generate(model, as_tensors, prefix, torch.tensor([0, 0, 0])) == expected
    single = generate(model.float(), prompts[:3], prefix)
    model.double()
    assert [len(ids) for ids in single] and generate(model, []) == []


def test_without_end_tokens(model, prompts) -> None:
    ours = generate(model, prompts[:8], eos=None, max_new_tokens=MOST)
    assert {len(ids) for ids in ours} == {MOST} and any(EOS in ids for ids in ours)
    other = Counter(token for ids in ours for token in ids).most_common(1)[0][0]
    for ids, cut in zip(ours, generate(model, prompts[:8], eos=other), strict=True):
        assert ids[: len(cut)] == cut and other not in cut


def test_dropout_and_mode_of_a_model_in_training(model, prompts) -> None:
    expected = generate(model, prompts[:4])
    model.dropout = 0.5
    model.train()
    try:
        assert generate(model, prompts[:4]) == expected and model.training
    finally:
        model.dropout = 0.0
        model.eval()


# The end of the positions


@pytest.mark.parametrize("beams", [1, 3])
def test_cut_where_the_positions_end(model, prefix, beams: int) -> None:
    prompts = [[1] * length for length in (5, 85, 90, 92)]
    ours = generate(model, prompts, prefix, beams=beams, eos=None, max_new_tokens=10)
    assert [len(ids) for ids in ours] == [10, 7, 2, 0]
    # What the row has room for does not change the others.
    short = generate(model, prompts[1:2], prefix, beams=beams, eos=None, max_new_tokens=7)
    assert ours[1] == short[0]


# Sampling


def frequencies(tokens: list[int]) -> Tensor:
    return torch.bincount(torch.tensor(tokens), minlength=CONFIG.vocab_size) / len(tokens)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.5, None, None), (None, 3, None), (2.0, None, 0.8)]
)
def test_samples_have_the_models_distribution(model, prompts, temperature, top_k, top_p) -> None:
    n, prompt = 2_000, prompts[2]
    rules = dict(temperature=temperature, top_k=top_k, top_p=top_p)
    new = generate(model, [prompt] * n, max_new_tokens=1, eos=None, batch_size=n, **rules)
    shares = (model.logits([prompt])[0][-1] / (temperature or 1)).softmax(-1)
    ranked, order = shares.sort(descending=True)
    kept = (ranked.cumsum(0) - ranked < (top_p or 2)) & (torch.arange(len(order)) < (top_k or 99))
    expected = torch.zeros_like(shares).index_add(0, order, ranked * kept)
    found = frequencies([ids[0] for ids in new])
    assert found[expected == 0].sum() == 0
    assert (found - expected / expected.sum()).abs().max() < 4 * math.sqrt(0.25 / n)


def test_seeds(model, prompts) -> None:
    def sample(prompts: list[list[int]], seed) -> list[list[int]]:
        return generate(model, prompts, temperature=2.0, seed=seed, max_new_tokens=12)

    assert sample(prompts, 1) == sample(prompts, 1) != sample(prompts, 2)
    twice = sample([prompts[0], prompts[1], prompts[0]], 1)
    assert twice[0] != twice[2]
    assert sample(prompts[:2], [3, 4]) == sample(prompts[:1], 3) + sample(prompts[1:2], 4)
    state = torch.get_rng_state()
    sample(prompts[:1], 5)
    assert torch.equal(state, torch.get_rng_state())


def test_little_of_the_distribution_is_greedy(model, prompts) -> None:
    expected = generate(model, prompts[:10])
    for rule in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6}):
        assert generate(model, prompts[:10], **rule) == expected


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"beams": 0}, "beams must be positive, not 0"),
        ({"beams": -3}, "beams must be positive"),
        ({"max_new_tokens": 0}, "max-new-tokens must be positive, not 0"),
        ({"batch_size": 0}, "batch-size must be positive, not 0"),
        ({"temperature": -0.1}, "temperature must not be negative"),
        ({"temperature": math.nan}, "temperature must not be negative"),
        ({"temperature": math.inf}, "temperature must be finite"),
        ({"top_k": 0}, "top-k must be positive, not 0"),
        ({"top_p": 0.0}, r"top-p must lie in \(0, 1\], not 0.0"),
        ({"top_p": 1.5}, "top-p must lie in"),
        ({"length_penalty": math.nan}, "length-penalty must lie in"),
        ({"length_penalty": 300.0}, r"length-penalty must lie in \[-10, 10\], not 300.0"),
        ({"length_penalty": 10**401}, "length-penalty must lie in"),
        ({"beams": 2, "temperature": 1.0}, "top-p need beams 1"),
        ({"prefix_ids": [0]}, "prefix-ids must lie in"),
        ({"prefix_ids": [-1, -1]}, "prefix-ids: 2 values for 1 prompts"),
        ({"seed": [1, 2]}, "seed: 2 values for 1 prompts"),
        ({"prompts": [[1], []]}, "number 1 is empty"),
        ({"prompts": [[1, 61]]}, "number 0 has an id outside the vocabulary"),
        ({"prompts": [[-1]]}, "number 0 has an id outside the vocabulary"),
        ({"prompts": [[1] * 97]}, "number 0, of 97 tokens, is 1 too long"),
    ],
)
def test_arguments_out_of_range(model, arguments: dict, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        generate(model, **{"prompts": [[1, 2]], **arguments})


def test_prefix_of_another_shape(model) -> None:
    with pytest.raises(PrefixError, match=r"shape \(3, 2, 4, 2, 16\).*\(2, 2, rows, 2, 16\)"):
        generate(model, [[1]], PrefixKV.from_tensor(torch.zeros(3, *SHAPE[1:])))
