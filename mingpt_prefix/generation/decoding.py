"""Generation after ragged prompts: greedy decoding, sampling, or beam search.

    generate(model, [tokenizer.encode(text)], prefix, beams=5)  # one list of new ids per prompt
    several = Decoding(beams=5, num_return_sequences=3)
    ((best, second, third),) = generate_scored(model, [tokenizer.encode(text)], prefix, several)
    best.ids, best.score

A batch's prompts run through the model once, packed; then each step appends one token to each row,
and finished rows leave the batch.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.config import Decoding
from mingpt_prefix.errors import ConfigError, PrefixError
from mingpt_prefix.generation.beam_search import search_beams
from mingpt_prefix.generation.kv_cache import KVCache
from mingpt_prefix.generation.sampling import LogitsProcessor, Scored, Watch, choose_tokens
from mingpt_prefix.model import GPT2

GREEDY = Decoding()
_NO_TOKEN = -1


@dataclass(frozen=True)
class _Row:
    """A prompt; its prefix (-1: none), and the first token that sees it (None: all); its maximum of
    new tokens, and the seed of each sample."""

    ids: list[int]
    prefix_id: int
    prefix_from: int | None
    limit: int
    seeds: list[int]


def generate(
    model: GPT2,
    prompts: Sequence[Sequence[int] | Tensor],
    prefix: PrefixKV | None = None,
    prefix_ids: Sequence[int] | Tensor | None = None,
    beams: int = 1,
    max_new_tokens: int = 100,
    length_penalty: float = 1.0,
    eos: Literal["model"] | int | None = "model",
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int = 32,
    prefix_from: Sequence[int] | Tensor | None = None,
    *,
    no_repeat_ngram_size: int = 0,
    min_new_tokens: int = 0,
    num_return_sequences: int = 1,
) -> list[list[int]]:
    """The new ids of each prompt, in the order of the prompts, without the end token.

    With several `num_return_sequences`, a prompt's follow each other, as in transformers;
    `generate_scored` returns them per prompt, with scores. `beams` to `top_p`, and the last three,
    are the settings of `Decoding`; other arguments are those of `generate_scored`. Raises like it.
    """
    how = (beams, max_new_tokens, length_penalty, temperature, top_k, top_p)
    decoding = Decoding(*how, no_repeat_ngram_size, min_new_tokens, num_return_sequences)
    found = generate_scored(
        model,
        prompts,
        prefix,
        decoding,
        prefix_ids=prefix_ids,
        prefix_from=prefix_from,
        eos=eos,
        seed=seed,
        batch_size=batch_size,
    )
    return [sequence.ids for of_prompt in found for sequence in of_prompt]


def generate_scored(
    model: GPT2,
    prompts: Sequence[Sequence[int] | Tensor],
    prefix: PrefixKV | None = None,
    decoding: Decoding = GREEDY,
    *,
    prefix_ids: Sequence[int] | Tensor | None = None,
    prefix_from: Sequence[int] | Tensor | None = None,
    eos: Literal["model"] | int | None = "model",
    seed: int | Sequence[int] = 0,
    batch_size: int = 32,
    watch: Watch | None = None,
) -> list[list[Scored]]:
    """The `decoding.num_return_sequences` sequences of each prompt with scores; beams best first.

    `prefix_ids` (B,): the prefix each prompt sees, -1 for none; None means prefix 0 for all.
    `prefix_from` (B,): the first token of each prompt that sees it, in which case it takes up no
    positions; None means all see it. `eos`: the model's own end token, another id, or None. A
    prompt gets fewer than `max_new_tokens`, or none, if `n_positions` leaves no room. `watch` is
    called with every token when it is chosen, see `Watch`.

    A prompt's result depends neither on the rest of its batch nor on `batch_size`. Samples depend
    on the prompt and the seed, one for all or one per prompt; a repeated prompt gets new samples.

    Raises:
        ConfigError: naming the argument that is out of range, or the prompt that is empty or does
            not fit in the model's `n_positions`.
        PrefixError: if the prefix does not have the model's shape.
    """
    if batch_size < 1:
        raise ConfigError(f"batch-size must be positive, not {batch_size}")
    eos = model.config.eos_token_id if eos == "model" else eos
    eos = _NO_TOKEN if eos is None else eos
    prefix = _fitting(model, prefix)
    rows = _make_rows(model, prompts, prefix, prefix_ids, prefix_from, decoding, seed)
    results = dict.fromkeys(range(len(rows)), [Scored([], 0.0)] * decoding.num_return_sequences)
    # Prompts of similar length share a batch, which keeps block tables narrow.
    order = sorted((i for i, row in enumerate(rows) if row.limit), key=lambda i: len(rows[i].ids))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                chosen, batch_watch = [rows[i] for i in batch], _renumbered(watch, batch)
                new = _generate_batch(model, chosen, prefix, decoding, eos, batch_watch)
                results.update(zip(batch, new, strict=True))
    finally:
        model.train(was_training)
    return list(results.values())


def _renumbered(watch: Watch | None, batch: list[int]) -> Watch | None:
    """`watch` for a batch, whose prompts are numbered from 0."""
    if watch is None:
        return None
    return lambda rows, tokens, log_probs: watch([batch[row] for row in rows], tokens, log_probs)


def _fitting(model: GPT2, prefix: PrefixKV | None) -> PrefixKV:
    """The prefix on the model's device and in its dtype; None becomes one without rows."""
    config = model.config
    if prefix is None:
        kv = torch.empty(config.n_layer, 2, 0, config.n_head, config.head_dim)
        prefix = PrefixKV(kv, torch.zeros(1, dtype=torch.int32))
    shape, expected = prefix.kv.shape, (config.n_layer, 2, config.n_head, config.head_dim)
    if len(shape) != 5 or (*shape[:2], *shape[3:]) != expected:
        wanted = "({}, {}, rows, {}, {})".format(*expected)
        raise PrefixError(f"prefix: shape {tuple(shape)}, but this model takes {wanted}")
    return prefix.to(model.device, model.wte.weight.dtype)


def _make_rows(
    model: GPT2,
    prompts: Sequence[Sequence[int] | Tensor],
    prefix: PrefixKV,
    prefix_ids: Sequence[int] | Tensor | None,
    prefix_from: Sequence[int] | Tensor | None,
    decoding: Decoding,
    seed: int | Sequence[int],
) -> list[_Row]:
    config, prefix_lengths = model.config, [*prefix.lengths.tolist(), 0]  # -1: the last, of 0 rows
    if prefix_ids is None:
        prefix_ids = [0 if len(prefix_lengths) > 1 else -1] * len(prompts)
    prefix_ids = torch.as_tensor(prefix_ids, dtype=torch.long).tolist()
    seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
    first = [None] * len(prompts) if prefix_from is None else torch.as_tensor(prefix_from).tolist()
    for name, values in (("prefix-ids", prefix_ids), ("prefix-from", first), ("seed", seeds)):
        if len(values) != len(prompts):
            raise ConfigError(f"{name}: {len(values)} values for {len(prompts)} prompts")
    if any(not -1 <= i < len(prefix_lengths) - 1 for i in prefix_ids):
        raise ConfigError(f"prefix-ids must lie in [-1, {len(prefix_lengths) - 1})")
    rows, times = [], Counter()
    for number, prompt in enumerate(prompts):
        ids = torch.as_tensor(prompt, dtype=torch.long).tolist()
        in_front = prefix_lengths[prefix_ids[number]] if prefix_from is None else 0
        room = config.n_positions - in_front - len(ids)
        _check_prompt(number, ids, room, config.vocab_size)
        key = (seeds[number], times[seeds[number], *ids], *ids)
        times[seeds[number], *ids] += 1
        own = [_seed(key, draw) for draw in range(decoding.num_return_sequences)]
        limit = min(decoding.max_new_tokens, room)
        rows.append(_Row(ids, prefix_ids[number], first[number], limit, own))
    return rows


def _check_prompt(number: int, ids: list[int], room: int, vocab_size: int) -> None:
    if not ids:
        raise ConfigError(f"prompts: number {number} is empty")
    if not 0 <= min(ids) <= max(ids) < vocab_size:
        raise ConfigError(f"prompts: number {number} has an id outside the vocabulary")
    if room < 0:
        what = f"number {number}, of {len(ids)} tokens, is {-room} too long for the model"
        raise ConfigError(f"prompts: {what} and its prefix")


def _seed(*key: object) -> int:
    """A pseudo-random 56-bit number, the same for equal keys."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")


def _generate_batch(
    model: GPT2,
    rows: list[_Row],
    prefix: PrefixKV,
    decoding: Decoding,
    eos: int,
    watch: Watch | None,
) -> list[list[Scored]]:
    prompts, prefix_ids = [row.ids for row in rows], [row.prefix_id for row in rows]
    width = max(decoding.beams, decoding.num_return_sequences)
    room = [row.limit * width for row in rows]
    first = None if rows[0].prefix_from is None else [row.prefix_from for row in rows]
    cache_class = getattr(model, "cache_class", KVCache)  # a model may bring one of its own
    cache = cache_class(model, prompts, prefix, prefix_ids, room, first)
    size, padding = model.config.vocab_size, model.padding
    rules = LogitsProcessor(prompts, decoding, eos, size, model.device, padding)
    limits = torch.tensor([row.limit for row in rows], device=model.device)
    if decoding.beams > 1:
        return search_beams(cache, limits, eos, decoding, rules, watch)
    seeds = [row.seeds for row in rows]
    return choose_tokens(cache, limits, eos, decoding, rules, seeds, watch)
