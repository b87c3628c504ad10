"""What calls are learned from: tables that end in a call, and text in which nothing is called.

lesson = table_lesson(tokenizer, example, text_format, call, prefix_id)
batch = pack_lessons([lesson], device)              # the sentence behind the call is predicted
ends = states(base, [lesson.table], [lesson.slot_ends])     # where the call may be written
quiet = states(base, texts, [range(len(ids)) for ids in texts])
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from mingpt_prefix.batch import Encoded, PackedBatch, make_layout, make_positions, pack
from mingpt_prefix.data.pretraining import is_held_out
from mingpt_prefix.data.tables import TEXT_FORMAT, Example, Table, linearize, target_text
from mingpt_prefix.data.text import documents
from mingpt_prefix.data.tokenizer import Tokenizer
from mingpt_prefix.generation.decoding import generate
from mingpt_prefix.model import GPT2

_WINDOW = 96  # tokens of a piece of text
_DOCUMENTS, _DOCUMENT_CHARS = 1_200, 1_000  # of files: more say little more
_DRAWN, _GREEDY = 64, 100  # tokens of what the model writes by itself
_AT_ONCE = 64


@dataclass(frozen=True)
class Lesson:
    """A table, the call of prefix `prefix_id` at token `called_at`, the table's sentence.

    Of the table's tokens, `slot_ends` are the last of a slot, where a shorter table would end, and
    `inside` those where none could."""

    ids: list[int]
    called_at: int
    prefix_id: int
    slot_ends: list[int]
    inside: list[int]

    @property
    def table(self) -> list[int]:
        return self.ids[: self.called_at]


@dataclass(frozen=True)
class States:
    """What the frozen model makes of M tokens: `hidden` (M, C), and of its logits `total` (M,), the
    logarithm of the sum of their exponentials, and `top` (M,), the largest."""

    hidden: Tensor
    total: Tensor
    top: Tensor

    def __len__(self) -> int:
        return len(self.total)

    def __getitem__(self, index: Tensor) -> "States":
        return States(self.hidden[index], self.total[index], self.top[index])


def table_lesson(
    tokenizer: Tokenizer, example: Example, text_format: str, call: int, prefix_id: int, bare: bool
) -> Lesson:
    """The lesson of an example; `bare`: its table without a space in front, as people type it."""

    def encode(table: Table) -> list[int]:
        spelled = linearize(table, text_format)
        return tokenizer.encode(spelled.lstrip() if bare else spelled)

    table, inside = encode(example.table), []
    slot_ends = [len(table) - 1]
    if text_format == TEXT_FORMAT:
        slots = example.table.slots
        slot_ends = [len(encode(Table(slots[:n]))) - 1 for n in range(1, len(slots) + 1)]
        inside = [place for place in range(len(table)) if place not in slot_ends]
    said = tokenizer.encode(target_text(example.text))
    return Lesson([*table, call, *said, tokenizer.eos], len(table), prefix_id, slot_ends, inside)


def pack_lessons(lessons: Sequence[Lesson], device: torch.device) -> PackedBatch:
    """Lessons one after the other, with their called prefixes; the sentences are predicted."""
    examples = [Encoded(torch.tensor(le.ids), le.called_at + 1) for le in lessons]
    ids = [le.prefix_id for le in lessons]
    return pack(examples, placement="infix", prefix_ids=ids).to(device)


@torch.no_grad()
def states(
    base: GPT2, sequences: Sequence[Sequence[int]], places: Sequence[Sequence[int]]
) -> States:
    """What `base` makes of the tokens at these places of each sequence, one after the other."""
    made: list[States] = []
    for start in range(0, len(sequences), _AT_ONCE):
        part = sequences[start : start + _AT_ONCE]
        layout = make_layout([len(ids) for ids in part]).to(base.device)
        index = [
            offset + place % len(ids)
            for offset, ids, own in zip(
                layout.cu_seqlens[:-1].tolist(), part, places[start : start + _AT_ONCE], strict=True
            )
            for place in own
        ]
        tokens = torch.tensor([token for ids in part for token in ids], device=base.device)
        hidden = base(tokens, make_positions(layout), layout)[index]
        logits = base.head(hidden).float()
        made.append(States(hidden.float(), logits.logsumexp(-1), logits.max(-1)[0]))
    parts = zip(*((m.hidden, m.total, m.top) for m in made), strict=True)
    return States(*map(torch.cat, parts))


def file_texts(tokenizer: Tokenizer, files: Sequence[Path]) -> list[list[int]]:
    """Windows of the first documents of `files`, without those that pretraining holds out.

    Raises DataError as `documents`.
    """
    found = (text for file in files for text in documents(file) if not is_held_out(text))
    windows = []
    for text in itertools.islice(found, _DOCUMENTS):
        ids = tokenizer.encode(text[:_DOCUMENT_CHARS])
        windows += [ids[start : start + _WINDOW] for start in range(0, len(ids), _WINDOW)]
    return windows


def own_texts(
    base: GPT2, eos: int, texts: Sequence[list[int]], count: int, seed: int
) -> list[list[int]]:
    """What the frozen model writes by itself: `count` drawn after words at random, and greedily
    after those and the beginnings of as many `texts`."""
    rng, rules = Random(seed), dict(eos=eos, batch_size=_AT_ONCE)
    starts = [[rng.randrange(eos) for _ in range(1 + n % 3)] for n in range(count)]
    drawn = generate(base, starts, temperature=1.0, max_new_tokens=_DRAWN, seed=seed, **rules)
    begun = [start + ids for start, ids in zip(starts, drawn, strict=True)]
    begun += [ids[: 4 + number % 24] for number, ids in enumerate(texts[:count])]
    more = generate(base, begun, max_new_tokens=_GREEDY, **rules)
    return [start + ids for start, ids in zip(begun, more, strict=True)]
