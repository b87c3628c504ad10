"""Sentences for tables: prompts in, decoding, lines of text out.

describe(model, load_tokenizer("gpt2"), [parse_table("name[The Mill]")], prefix)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.config import Decoding
from mingpt_prefix.data.encoding import encode_prompt
from mingpt_prefix.data.tables import TEXT_FORMAT, Table
from mingpt_prefix.data.tokenizer import Tokenizer
from mingpt_prefix.errors import TableError
from mingpt_prefix.generation.decoding import GREEDY, generate_scored
from mingpt_prefix.generation.sampling import Scored
from mingpt_prefix.model import GPT2


class Sentence(NamedTuple):
    """One line of text, and its score as `Scored` has it."""

    text: str
    score: float


def describe(
    model: GPT2,
    tokenizer: Tokenizer,
    tables: Sequence[Table],
    prefix: PrefixKV | None = None,
    decoding: Decoding = GREEDY,
    text_format: str = TEXT_FORMAT,
    seeds: Sequence[int] | None = None,
    placement: str = "prefix",
) -> list[str | TableError]:
    """One line of text a table, the first of those by `describe_scored`, or what is wrong."""
    found = describe_scored(
        model, tokenizer, tables, prefix, decoding, text_format, seeds, placement
    )
    return [said if isinstance(said, TableError) else said[0].text for said in found]


def describe_scored(
    model: GPT2,
    tokenizer: Tokenizer,
    tables: Sequence[Table],
    prefix: PrefixKV | None = None,
    decoding: Decoding = GREEDY,
    text_format: str = TEXT_FORMAT,
    seeds: Sequence[int] | None = None,
    placement: str = "prefix",
) -> list[list[Sentence] | TableError]:
    """`decoding.num_return_sequences` sentences a table, or what is wrong with it: a table may be
    too long, or lack a slot that the format's template has a field for.

    `seeds` (one a table) are for sampling; as an infix, the prefix is seen from the separator on.

    Raises:
        ConfigError: for a text format that this version does not know.
    """
    prompts = [_prompt(tokenizer, table, text_format) for table in tables]
    is_infix = prefix is not None and placement == "infix"
    rows = 0 if prefix is None or is_infix else int(prefix.lengths[0])
    room = model.config.n_positions - rows - 1  # for the prompt and one new token

    def write(fitting: list[list[int]], own_seeds: list[int]) -> list[list[Scored]]:
        return generate_scored(
            model,
            fitting,
            prefix,
            decoding,
            prefix_from=[len(prompt) - 1 for prompt in fitting] if is_infix else None,
            eos=tokenizer.eos,
            seed=own_seeds,
        )

    return write_fitting(prompts, room, seeds, write, tokenizer.decode)


def write_fitting(
    prompts: Sequence[list[int] | TableError],
    room: int,
    seeds: Sequence[int] | None,
    write: Callable[[list[list[int]], list[int]], list[list[Scored]]],
    decode: Callable[[list[int]], str],
    what: str = "table",
) -> list[list[Sentence] | TableError]:
    """What `write` gives for the prompts of at most `room` tokens, and their seeds, as lines; for
    the others what is wrong with the `what`."""
    fitting = [i for i, p in enumerate(prompts) if isinstance(p, list) and len(p) <= room]
    own_seeds = [0 if seeds is None else seeds[i] for i in fitting]
    new = write([prompts[i] for i in fitting], own_seeds)
    said: dict[int, list[Sentence] | TableError] = {
        i: [Sentence(one_line(decode(ids)), score) for ids, score in sequences]
        for i, sequences in zip(fitting, new, strict=True)
    }
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, TableError):
            said[i] = prompt
        elif len(prompt) > room:
            why = f"the {what} has {len(prompt)} tokens, and the model has room for {room}"
            said[i] = TableError(why, 0)
    return [said[i] for i in range(len(prompts))]


def _prompt(tokenizer: Tokenizer, table: Table, text_format: str) -> list[int] | TableError:
    try:
        return encode_prompt(tokenizer, table, text_format)
    except TableError as error:
        return error


def one_line(text: str) -> str:
    """Text on one line: white space collapsed and trimmed, what cannot be shown left out."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())
