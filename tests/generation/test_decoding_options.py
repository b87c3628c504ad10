"""Decoding's options: bans and several sequences with scores, as transformers' `generate` has them.

Beside them, that finished rows cost nothing and that the order of `generate`'s arguments stands.
"""

import inspect
import math
from collections import Counter

import pytest
import torch
from decoding_peers import (
    CONFIG,
    EOS,
    MOST,
    assert_varied,
    make_model,
    make_peer,
    make_prefix,
    make_prompts,
    new_ids,
    run_peer,
    theirs,
)

from mingpt_prefix import Decoding, Scored, generate, generate_scored
from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.errors import ConfigError
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
    """Some hold the end token, and are written to repeat themselves."""
    prompts = make_prompts()[:16]
    return [[*ids, EOS, *ids[:3]] if i % 3 == 0 else ids for i, ids in enumerate(prompts)]


# Bans


def repeats(ids: list[int], n: int) -> bool:
    return max(Counter(zip(*(ids[i:] for i in range(n)), strict=False)).values(), default=1) > 1


BANS = [
    {"no_repeat_ngram_size": 1, "max_new_tokens": 15},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 40},
    {"min_new_tokens": 40, "max_new_tokens": 45},
    {"no_repeat_ngram_size": 3, "min_new_tokens": 20, "max_new_tokens": 20},
]


@pytest.mark.parametrize("bans", BANS, ids=lambda bans: "-".join(map(str, bans.values())))
@pytest.mark.parametrize("beams", [1, 5])
def test_bans_as_transformers(model, prefix, prompts, beams: int, bans: dict) -> None:
    bans = {"max_new_tokens": 25, **bans}
    ours = generate(model, prompts, prefix, beams=beams, **bans)
    peer = make_peer(model, prefix)
    assert ours == [theirs(peer, prompt, num_beams=beams, **bans) for prompt in prompts]
    assert all(len(ids) >= bans.get("min_new_tokens", 0) for ids in ours)
    n = bans.get("no_repeat_ngram_size", 0)
    if 0 < n < 40:
        # A prompt may repeat itself; what is generated repeats neither it nor itself.
        assert not any(repeats(ids, n) for ids in ours)
        assert_varied(ours)
    free = generate(model, prompts, prefix, beams=beams, max_new_tokens=bans["max_new_tokens"])
    assert (ours != free) == (n != 40)


def test_bans_without_end_tokens(model, prompts) -> None:
    rules = dict(eos=None, max_new_tokens=12)
    free = generate(model, prompts, **rules)
    assert generate(model, prompts, min_new_tokens=12, **rules) == free
    peer = make_peer(model, None)
    rules["no_repeat_ngram_size"] = 2
    assert generate(model, prompts, **rules) == [theirs(peer, p, **rules) for p in prompts]


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0}], ids=["greedy", "sample"])
def test_the_end_where_every_token_is_banned(model, how: dict) -> None:
    decoding = Decoding(no_repeat_ngram_size=1, max_new_tokens=80, **how)
    ((sequence,),) = generate_scored(model, [[3, 5, EOS]], decoding=decoding)
    assert sorted(sequence.ids) == sorted({*range(CONFIG.vocab_size)} - {3, 5, EOS})
    assert math.isfinite(sequence.score)


def test_beams_where_every_token_is_banned(model) -> None:
    prompt = [i for i in range(CONFIG.vocab_size) if i != 7]
    for beams in (2, 5):
        rules = dict(no_repeat_ngram_size=1, max_new_tokens=6)
        ours = generate(model, [prompt], beams=beams, **rules)
        assert ours == [theirs(make_peer(model, None), prompt, num_beams=beams, **rules)]


# Several sequences and their scores


@pytest.mark.parametrize("beams", [2, 5])
@pytest.mark.parametrize("length_penalty", [-7.0, -10.0, 10.0])
def test_numbers_at_the_edge_of_beams(model, prefix, prompts, length_penalty, beams) -> None:
    rules = Decoding(beams, 25, length_penalty, min_new_tokens=12, num_return_sequences=2)
    sequences = [each for of in generate_scored(model, prompts, prefix, rules) for each in of]
    assert all(len(sequence.ids) >= 12 for sequence in sequences)
    assert all(-math.inf < sequence.score < 0 for sequence in sequences)
    assert min(sequence.score for sequence in sequences) < -1e9 or length_penalty > 0


@pytest.mark.parametrize("temperature", [1e-310, 5e-324, 1e-5, 1e300])
def test_numbers_at_the_edge_of_sampling(model, prefix, prompts, temperature: float) -> None:
    drawn = generate_scored(model, prompts, prefix, Decoding(1, 20, temperature=temperature))
    assert all(math.isfinite(sequence.score) for (sequence,) in drawn)
    if temperature < 1:
        assert [[each.ids for each in of] for of in drawn] == [
            [ids] for ids in generate(model, prompts, prefix, max_new_tokens=20)
        ]


@pytest.mark.parametrize("how", [{}, {"top_k": 5, "seed": 3}, {"top_p": 0.9}])
def test_temperature_0_is_greedy(model, prefix, prompts, how: dict) -> None:
    ours = generate(model, prompts, prefix, max_new_tokens=20, temperature=0, **how)
    assert ours == generate(model, prompts, prefix, max_new_tokens=20)


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0])
def test_beams_and_scores_as_transformers(model, prefix, prompts, length_penalty: float) -> None:
    decoding = Decoding(5, 25, length_penalty, min_new_tokens=3, num_return_sequences=4)
    ours = generate_scored(model, prompts, prefix, decoding)
    peer = make_peer(model, prefix)
    for prompt, sequences in zip(prompts, ours, strict=True):
        out = run_peer(
            peer,
            prompt,
            num_beams=5,
            max_new_tokens=25,
            length_penalty=length_penalty,
            min_new_tokens=3,
            num_return_sequences=4,
        )
        assert [sequence.ids for sequence in sequences] == new_ids(out, prompt)
        scores = torch.tensor([sequence.score for sequence in sequences])
        torch.testing.assert_close(scores, out.sequences_scores, atol=1e-5, rtol=1e-5)
        assert (scores.diff() <= 0).all()
    assert_varied([sequence.ids for sequences in ours for sequence in sequences])


def test_greedy_scores_as_transformers(model, prefix, prompts) -> None:
    rules = dict(max_new_tokens=20, no_repeat_ngram_size=2, min_new_tokens=4)
    ours = generate_scored(model, prompts, prefix, Decoding(**rules))
    peer = make_peer(model, prefix)
    for prompt, (sequence,) in zip(prompts, ours, strict=True):
        out = run_peer(peer, prompt, **rules)
        shares = peer.get_base_model().compute_transition_scores(
            out.sequences, out.scores, normalize_logits=True
        )
        assert [sequence.ids] == new_ids(out, prompt)
        assert sequence.score == pytest.approx(float(shares.sum()), abs=1e-4)


def test_sample_scores_by_transformers_own_rules(model, prefix, prompts) -> None:
    """The peer is led along our samples, its processors and warpers in place."""
    rules = dict(temperature=1.7, top_k=20, top_p=0.9, no_repeat_ngram_size=2, min_new_tokens=3)
    decoding = Decoding(max_new_tokens=15, num_return_sequences=3, **rules)
    ours = generate_scored(model, prompts[:6], prefix, decoding)
    peer = make_peer(model, prefix)
    ended = 0
    for prompt, sequences in zip(prompts, ours, strict=False):
        assert len({tuple(sequence.ids) for sequence in sequences}) == 3
        for ids, score in sequences:
            said = [*ids, *[EOS] * (len(ids) < 15)]
            ended += len(ids) < 15
            expected = 0.0
            for step, token in enumerate(said):
                # What was said before counts as its prompt: less of the minimum is left.
                least = max(0, rules["min_new_tokens"] - step)
                flags = {**rules, "min_new_tokens": least, "max_new_tokens": 4, "do_sample": True}
                out = run_peer(peer, [*prompt, *said[:step]], **flags)
                expected += float(out.scores[0][0].log_softmax(-1)[token])
            assert score == pytest.approx(expected, abs=1e-4)
    assert ended


def test_several_samples_have_the_models_distribution(model, prompts) -> None:
    n, prompt = 2_000, prompts[2]
    decoding = Decoding(max_new_tokens=1, temperature=1.5, num_return_sequences=n)
    (samples,) = generate_scored(model, [prompt], decoding=decoding, eos=None)
    shares = (model.logits([prompt])[0][-1] / 1.5).softmax(-1)
    tokens = torch.tensor([sample.ids[0] for sample in samples])
    found = torch.bincount(tokens, minlength=CONFIG.vocab_size) / n
    assert (found - shares).abs().max() < 4 * math.sqrt(0.25 / n)
    scores = torch.tensor([sample.score for sample in samples], dtype=torch.double)
    torch.testing.assert_close(scores, shares[tokens].log(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "how",
    [{"beams": 4, "no_repeat_ngram_size": 2}, {"temperature": 1.3, "min_new_tokens": 4}],
    ids=["beams", "sample"],
)
def test_a_prompts_sequences_do_not_depend_on_the_rest(model, prefix, prompts, how: dict) -> None:
    several = Decoding(max_new_tokens=12, num_return_sequences=3, **how)
    together = generate_scored(model, prompts, prefix, several, seed=5)
    alone = [generate_scored(model, [p], prefix, several, seed=5)[0] for p in prompts]
    assert [[s.ids for s in of] for of in together] == [[s.ids for s in of] for of in alone]
    torch.testing.assert_close(
        torch.tensor([[s.score for s in of] for of in together]),
        torch.tensor([[s.score for s in of] for of in alone]),
    )
    one = generate(model, prompts, prefix, max_new_tokens=12, seed=5, **how)
    assert [of[0].ids for of in together] == one
    flat = generate(
        model, prompts, prefix, max_new_tokens=12, seed=5, num_return_sequences=3, **how
    )
    assert flat == [sequence.ids for of in together for sequence in of]


def test_as_many_sequences_where_there_is_no_room(model) -> None:
    decoding = Decoding(beams=3, max_new_tokens=4, num_return_sequences=2)
    full, short = generate_scored(model, [[1] * 96, [1] * 95], decoding=decoding, eos=None)
    assert full == [Scored([], 0.0)] * 2
    assert [len(sequence.ids) for sequence in short] == [1, 1] and short[0].ids != short[1].ids


# What finished rows cost


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(max_new_tokens=MOST),
        Decoding(5, MOST),
        Decoding(max_new_tokens=MOST, temperature=1.0, num_return_sequences=3),
    ],
    ids=["greedy", "beams", "samples"],
)
def test_finished_rows_leave_the_batch(model, prefix, prompts, decoding, monkeypatch) -> None:
    run = []
    embed = GPT2.embed

    def counted(self: GPT2, tokens: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        run.append(len(tokens))
        return embed(self, tokens, *rest)

    monkeypatch.setattr(GPT2, "embed", counted)
    generate_scored(model, prompts, prefix, decoding)
    together, most = sum(run), max(run[1:])
    assert min(run) < most  # some prompts are over before others
    run.clear()
    for prompt in prompts:
        generate_scored(model, [prompt], prefix, decoding)
    assert together == sum(run)


# The public interface


def test_the_order_of_generates_arguments() -> None:
    parameters = inspect.signature(generate).parameters.values()
    placed = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    expected = """model prompts prefix prefix_ids beams max_new_tokens length_penalty eos
        temperature top_k top_p seed batch_size prefix_from"""
    assert placed == expected.split()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"no_repeat_ngram_size": -1}, "no-repeat-ngram-size must not be negative, not -1"),
        ({"min_new_tokens": -1}, r"min-new-tokens must lie in \[0, max-new-tokens\]"),
        ({"min_new_tokens": 6, "max_new_tokens": 5}, "min-new-tokens must lie in"),
        ({"num_return_sequences": 0}, "num-return-sequences must be positive, not 0"),
        ({"num_return_sequences": 2}, "num-return-sequences needs as many beams, or sampling"),
        ({"num_return_sequences": 4, "beams": 3}, "num-return-sequences needs as many beams"),
    ],
)
def test_options_out_of_range(model, arguments: dict, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        generate(model, [[1, 2]], **arguments)
