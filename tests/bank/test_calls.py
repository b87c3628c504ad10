"""Calls: what a batch over many prefixes says, what a written call does, and prompts.

The oracle is the model run whole at each step, a sequence at a time.
"""

import math

import pytest
import torch
from decoding_peers import CONFIG, EOS, make_model

from mingpt_prefix.bank.calls import Callee, CallingGPT2, called_in, decode_calls, encode_call
from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.config import Decoding
from mingpt_prefix.data.tables import TEXT_FORMAT, linearize, parse_table
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.errors import PromptError
from mingpt_prefix.generation.decoding import generate, generate_scored

V, N, MOST = CONFIG.vocab_size, 16, 24


@pytest.fixture(scope="module")
def prefix() -> PrefixKV:
    """16 prefixes of 1 to 16 rows."""
    draw, shape = torch.Generator().manual_seed(1), (CONFIG.n_layer, 2)
    sizes = [(*shape, rows, CONFIG.n_head, CONFIG.head_dim) for rows in range(1, N + 1)]
    return PrefixKV.pack(
        [2 * torch.randn(size, generator=draw, dtype=torch.double) for size in sizes]
    )


def make_calling(likely: float, may_emit: list[bool] | None = None) -> CallingGPT2:
    """The little model with calls: the larger `likely`, the oftener it writes them by itself."""
    base, draw = make_model(), torch.Generator().manual_seed(2)
    rows = likely * 0.2 * torch.randn(N, CONFIG.n_embd, generator=draw, dtype=torch.double)
    return CallingGPT2(base, rows, may_emit)


def make_prompts(count: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)
    lengths = torch.randint(2, 20, (count,), generator=draw).tolist()
    return [torch.randint(EOS, (length,), generator=draw).tolist() for length in lengths]


def whole(model: CallingGPT2, prefix: PrefixKV, ids: list[int]) -> torch.Tensor:
    """The logits (V + N,) after `ids`, run as they are; after a call no other is allowed."""
    (called,), (first,) = called_in([ids], model)
    (logits,) = model.logits([ids], prefix, [called], [first])
    last = logits[-1].float()
    if called >= 0:
        last[V:] = -math.inf
    return last


def greedily(model: CallingGPT2, prefix: PrefixKV, prompt: list[int]) -> list[int]:
    new: list[int] = []
    while len(new) < MOST:
        token = int(whole(model, prefix, prompt + new).argmax())
        if token == EOS:
            break
        new.append(token)
    return new


# Many prefixes in one batch


def test_64_rows_over_16_prefixes_are_64_single_runs(prefix) -> None:
    model, prompts = make_calling(1.0), make_prompts(64)
    ids, first = [i % N for i in range(64)], [i % len(p) for i, p in enumerate(prompts)]
    for i, prompt in enumerate(prompts):
        prompt[first[i]] = V + ids[i]
    assert called_in(prompts, model) == (ids, first)
    together = model.logits(prompts, prefix, ids, first)
    rules = dict(max_new_tokens=MOST, batch_size=64)
    written = generate(model, prompts, prefix, ids, prefix_from=first, **rules)
    assert len({tuple(new) for new in written}) > 32
    starts = prefix.starts.tolist()
    for i, prompt in enumerate(prompts):
        own = PrefixKV.from_tensor(prefix.kv[:, :, starts[ids[i]] : starts[ids[i] + 1]])
        (alone,) = model.logits([prompt], own, [0], [first[i]])
        assert torch.allclose(together[i], alone, rtol=1e-10, atol=1e-10)
        assert written[i : i + 1] == generate(model, [prompt], own, prefix_from=[first[i]], **rules)


def test_a_call_moves_no_positions_and_is_seen_from_itself_on(prefix) -> None:
    """In front of the call the logits are the frozen model's, behind it they are others."""
    model, ids = make_calling(1.0), make_prompts(1)[0]
    called = [*ids, V + 7, *ids]
    (logits,), (frozen,) = model.logits([called], prefix, [7], [len(ids)]), model.logits([called])
    assert torch.allclose(logits[: len(ids)], frozen[: len(ids)])
    assert not torch.isclose(logits[len(ids) :, :V], frozen[len(ids) :, :V]).all(dim=1).any()


# Calls that the model writes


def test_a_written_call_attaches_its_prefix_to_its_row_alone(prefix) -> None:
    model, prompts = make_calling(1.1), make_prompts(48)
    none = [-1] * len(prompts)
    rules = dict(max_new_tokens=MOST, prefix_from=[0] * len(prompts), batch_size=48)
    written = generate(model, prompts, prefix, none, **rules)
    assert written == [greedily(model, prefix, prompt) for prompt in prompts]
    calls = [[token - V for token in new if token >= V] for new in written]
    # Some rows call, and none of them twice; others never do.
    assert {len(own) for own in calls} == {0, 1} and sum(map(len, calls)) > 3


def test_a_call_that_was_not_learned_is_never_written(prefix) -> None:
    prompts, rules = make_prompts(24), dict(max_new_tokens=MOST, prefix_from=[0] * 24)
    written = generate(make_calling(1.6), prompts, prefix, [-1] * 24, **rules)
    common = next(token for new in written for token in new if token >= V) - V
    model = make_calling(1.6, [i != common for i in range(N)])
    others = generate(model, prompts, prefix, [-1] * 24, **rules)
    assert V + common not in {token for new in others for token in new}
    assert any(token > EOS for new in others for token in new)


def test_quiet_rows_keep_calls_from_being_written(prefix) -> None:
    """Each is one more way to say nothing; words are as likely as without them."""
    loud, draw = make_calling(1.6), torch.Generator().manual_seed(4)
    hidden = torch.randn(5, CONFIG.n_embd, generator=draw, dtype=torch.double)
    quiet = torch.randn(N, 3, CONFIG.n_embd, generator=draw, dtype=torch.double)
    model = CallingGPT2(make_model(), loud.rows, quiet=quiet)
    ways = 1 + torch.einsum("mc,njc->mnj", hidden, quiet).exp().sum(-1)
    without = loud.head(hidden)
    assert torch.equal(model.head(hidden)[:, :V], without[:, :V])
    torch.testing.assert_close(model.head(hidden)[:, V:], without[:, V:] - ways.log())
    prompts, rules = make_prompts(24), dict(max_new_tokens=MOST, prefix_from=[0] * 24)

    def n_calls(model: CallingGPT2) -> int:
        written = generate(model, prompts, prefix, [-1] * 24, **rules)
        return sum(token >= V for new in written for token in new)

    assert n_calls(model) < n_calls(loud)
    model = CallingGPT2(make_model(), loud.rows, quiet=torch.zeros(N, 2**12, CONFIG.n_embd))
    assert n_calls(model) == 0


@pytest.mark.parametrize("how", [dict(beams=4), dict(temperature=1.5, num_return_sequences=3)])
def test_beams_and_samples_call_too(prefix, how: dict) -> None:
    """Their scores are the sums of log-probabilities that the whole model gives."""
    model, prompts = make_calling(1.6), make_prompts(12)
    rules, none = Decoding(max_new_tokens=6, length_penalty=0.0, **how), [-1] * 12
    found = generate_scored(
        model, prompts, prefix, rules, prefix_ids=none, prefix_from=[0] * 12, eos=None
    )
    heat, n_called = rules.temperature or 1.0, 0
    for prompt, sequences in zip(prompts, found, strict=True):
        for ids, score in sequences:
            n_called += any(token >= V for token in ids)
            steps = [whole(model, prefix, prompt + ids[:n]) / heat for n in range(len(ids))]
            shares = [s.log_softmax(-1)[t] for s, t in zip(steps, ids, strict=True)]
            assert score == pytest.approx(float(sum(shares)), abs=1e-3)
    assert n_called > 3


# Prompts


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


CALLEES = {"films": Callee(4096, TEXT_FORMAT), "inns": Callee(4097, TEXT_FORMAT)}
TABLE = "name[The Mill], eatType[pub]"


def test_where_a_call_stands(tokenizer) -> None:
    """Behind the table, where an infix begins; what is in front of it is text."""
    table = tokenizer.encode(linearize(parse_table(TABLE)))
    behind = encode_call(tokenizer, f"<|prefix:films|> {TABLE}", CALLEES)
    assert behind == [*table, 4096]
    text = "Once upon a time"
    both = encode_call(tokenizer, f"{text}<|prefix:inns|>{TABLE}", CALLEES)
    assert both == [*tokenizer.encode(text), *table, 4097]
    assert encode_call(tokenizer, text, CALLEES) == tokenizer.encode(text)
    last = encode_call(tokenizer, f"{text}<|prefix:inns|>", CALLEES)
    assert last == [*tokenizer.encode(text), 4097]
    as_json = encode_call(
        tokenizer, '<|prefix:films|>{"name": "The Mill", "eatType": "pub"}', CALLEES
    )
    assert as_json == behind


def test_a_call_in_a_value_is_text(tokenizer) -> None:
    prompt = encode_call(tokenizer, "<|prefix:films|> name[<|prefix:inns|>]", CALLEES)
    assert prompt == [*tokenizer.encode(" name : <|prefix:inns|>"), 4096]
    assert tokenizer.decode(prompt[:-1]) == " name : <|prefix:inns|>"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("<|prefix:books|> name[a]", "no prefix 'books' in the bank; there is: films, inns"),
        ("<|prefix:../films|> name[a]", "no prefix '../films' in the bank"),
        ("<|prefix:films|> name[a", r"after <\|prefix:films\|>: '\]' is missing"),
        ("<|prefix:films|><|prefix:inns|>", r"after <\|prefix:films\|>: .*missing"),
        (" ", "the prompt is empty"),
        ("a\udcff", "not UTF-8"),
        ("a" * 20_001, "longer than 20,000"),
    ],
)
def test_bad_prompts(tokenizer, prompt: str, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        encode_call(tokenizer, prompt, CALLEES)


def test_calls_are_shown_as_they_are_written(tokenizer) -> None:
    ids = [*tokenizer.encode(" a river"), 4097, *tokenizer.encode(" The Mill")]
    names = {callee.token: name for name, callee in CALLEES.items()}
    assert decode_calls(tokenizer, ids, names) == " a river<|prefix:inns|> The Mill"
