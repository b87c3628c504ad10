"""What calls are learned from: tables that end in a call, and text in which nothing is called.

tables = [table_lesson(tokenizer, example, text_format, call, prefix_id)]
batch = pack_lessons(tables + text_lessons(tokenizer, texts), device)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mingpt_prefix.batch import PackedBatch, make_layout, make_positions
from mingpt_prefix.decoding import generate
from mingpt_prefix.model import GPT2
from mingpt_prefix.tables import TEXT_FORMAT, Example, Table, linearize, target_text
from mingpt_prefix.tokenizer import Tokenizer

WINDOW = 96  # tokens of a piece of text


@dataclass(frozen=True)
class Lesson:
    """A sequence `ids` and at which of its tokens the next one is to be predicted; what it calls
    (-1: nothing), and where."""

    ids: list[int]
    predicting: list[int]
    prefix_id: int = -1
    called_at: int = 0


def table_lesson(
    tokenizer: Tokenizer, example: Example, text_format: str, call: int, prefix_id: int, bare: bool
) -> Lesson:
    """A table, the call that is to follow it, and its sentence; `bare`: without a leading space,
    as people type it."""
    spelled = linearize(example.table, text_format)
    table = tokenizer.encode(spelled.lstrip() if bare else spelled)
    said = tokenizer.encode(target_text(example.text, text_format))
    ids = [*table, call, *said, tokenizer.eos]
    ends = _slot_ends(tokenizer, example.table, text_format, bare)
    inside = [] if ends is None else [i for i in range(len(table) - 1) if i not in ends]
    return Lesson(ids, [*inside, *range(len(table) - 1, len(ids) - 1)], prefix_id, len(table))


def _slot_ends(tokenizer: Tokenizer, table: Table, text_format: str, bare: bool) -> set[int] | None:
    """The last token of each slot, after which the table might be over; None for a template."""
    if text_format != TEXT_FORMAT:
        return None
    parts = (linearize(Table(table.slots[:n])) for n in range(1, len(table.slots)))
    return {len(tokenizer.encode(part.lstrip() if bare else part)) - 1 for part in parts}


def text_lessons(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Lesson]:
    """Windows of plain text, in which nothing is called."""
    lessons = []
    for text in texts:
        ids = tokenizer.encode(text)
        for start in range(0, len(ids) - 1, WINDOW - 1):
            piece = ids[start : start + WINDOW]
            if len(piece) > 1:
                lessons.append(Lesson(piece, list(range(len(piece) - 1))))
    return lessons


def own_lessons(base: GPT2, starts: Sequence[list[int]], eos: int, seed: int) -> list[Lesson]:
    """What the frozen model writes by itself after `starts`, drawn, and greedily after what it drew:
    in its own words it calls nothing either."""
    rules = dict(max_new_tokens=WINDOW // 2, eos=eos)
    drawn = generate(base, starts, temperature=1.0, seed=seed, **rules)
    said = [[*start, *ids] for start, ids in zip(starts, drawn, strict=True)]
    more = generate(base, said, **rules)
    sequences = [[*ids, *rest] for ids, rest in zip(said, more, strict=True)]
    return [Lesson(ids, list(range(len(ids) - 1))) for ids in sequences if len(ids) > 1]


def pack_lessons(lessons: Sequence[Lesson], device: torch.device) -> PackedBatch:
    """Lessons one after the other; a called prefix moves no positions."""
    ids, first = [le.prefix_id for le in lessons], [le.called_at for le in lessons]
    layout = make_layout([len(lesson.ids) for lesson in lessons], ids, first)
    starts = layout.seq_starts[:-1].tolist()
    tokens = torch.tensor([token for lesson in lessons for token in lesson.ids])
    index = [s + i for s, le in zip(starts, lessons, strict=True) for i in le.predicting]
    index = torch.tensor(index)
    positions = make_positions(layout)
    return PackedBatch(tokens, positions, layout, index, tokens[index + 1]).to(device)
