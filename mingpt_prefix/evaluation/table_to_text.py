"""From tables to sentences: prompts, generation, lines of text.

pipeline = Pipeline(model, load_tokenizer("gpt2"), prefix)
pipeline(["name[The Mill], eatType[pub]", {"name": "Café Rouge"}])     # a sentence per table
pipeline.write_scored([parse_table("name[The Mill]")], Decoding(beams=5, num_return_sequences=3))
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.config import Decoding
from mingpt_prefix.data.encoding import encode_prompt
from mingpt_prefix.data.spellings import as_table
from mingpt_prefix.data.tables import TEXT_FORMAT, Table
from mingpt_prefix.data.tokenizer import Tokenizer
from mingpt_prefix.errors import ConfigError, TableError
from mingpt_prefix.evaluation.sample_config import BEAMS
from mingpt_prefix.generation.decoding import GREEDY, generate_scored
from mingpt_prefix.generation.sampling import Scored
from mingpt_prefix.model import GPT2

# A table in any of its spellings: "name[The Mill]", JSON of it, {"name": "The Mill"}, triples.
Spelled = Table | str | Mapping | list
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Sentence(NamedTuple):
    """One line of text, and its score (see `Scored`)."""

    text: str
    score: float


@dataclass(frozen=True)
class Pipeline:
    """A model, its tokenizer and a prefix; `origin` describes which ones, and why.

    With placement infix, tokens see the prefix from the separator after the table on. `slots` are
    the slot names seen in training, if known.
    """

    model: GPT2
    tokenizer: Tokenizer
    prefix: PrefixKV | None = None
    text_format: str = TEXT_FORMAT
    placement: str = "prefix"
    origin: str = ""
    slots: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Pipeline({self.origin or self.model})"

    def __call__(
        self, tables: Sequence[Spelled], beams: int = BEAMS, seed: int = 0, **settings
    ) -> list[str]:
        """One sentence per table, in the order of the tables; `beams` 1 is greedy.

        A table is "name[The Mill], eatType[pub]", {"name": "The Mill"} or the same as JSON, a list
        of (subject, predicate, object) triples, or a `Table`. `settings` are the other fields of
        `Decoding`; sampling needs `beams=1`, and draws by `seed`.

        Raises:
            TableError: naming the first table (from 0) that is invalid or too long for the model.
            ConfigError: if a setting is out of range, or `tables` is one table and not a list.
        """
        if isinstance(tables, Table | str | Mapping):
            raise ConfigError("tables: pass a list of tables, pipeline([table])")
        decoding = Decoding(beams=beams, **settings)
        written = self.write(tables, decoding, [seed] * len(tables))
        for number, said in enumerate(written):
            if isinstance(said, TableError):
                raise TableError(f"tables: number {number}: {said}", said.position)
        return written

    @property
    def is_infix(self) -> bool:
        return self.prefix is not None and self.placement == "infix"

    @property
    def room(self) -> int:
        """How many tokens fit behind the prefix."""
        rows = 0 if self.prefix is None or self.is_infix else int(self.prefix.lengths[0])
        return self.model.config.n_positions - rows

    def prompt(self, table: Spelled) -> list[int]:
        """The prompt for `table`, as token ids.

        Raises:
            TableError: if it cannot be parsed, leaves no room for a new token, or lacks a slot that
                the text format's template names.
            ConfigError: if this version does not know the text format.
        """
        prompt = encode_prompt(self.tokenizer, as_table(table), self.text_format)
        check_room(len(prompt), self.room, "table")
        return prompt

    def write(
        self,
        tables: Sequence[Spelled],
        decoding: Decoding = GREEDY,
        seeds: Sequence[int] | None = None,
    ) -> list[str | TableError]:
        """One line of text per table, the best of `write_scored`, or the table's error."""
        found = self.write_scored(tables, decoding, seeds)
        return [said if isinstance(said, TableError) else said[0].text for said in found]

    def write_scored(
        self,
        tables: Sequence[Spelled],
        decoding: Decoding = GREEDY,
        seeds: Sequence[int] | None = None,
    ) -> list[list[Sentence] | TableError]:
        """`decoding.num_return_sequences` sentences per table, or the table's error.

        `seeds`, one per table, are for sampling. Raises ConfigError like `prompt`.
        """

        def generate(prompts: list[list[int]], seeds: list[int]) -> list[list[Scored]]:
            return generate_scored(
                self.model,
                prompts,
                self.prefix,
                decoding,
                prefix_from=[len(prompt) - 1 for prompt in prompts] if self.is_infix else None,
                eos=self.tokenizer.eos,
                seed=seeds,
            )

        return write_each(tables, self.prompt, seeds, generate, self.tokenizer.decode)


def write_each(
    items: Sequence,
    encode: Callable[..., list[int]],
    seeds: Sequence[int] | None,
    generate: Callable[[list[list[int]], list[int]], list[list[Scored]]],
    decode: Callable[[list[int]], str],
) -> list[list[Sentence] | TableError]:
    """The lines that `generate` returns for each item's prompt, or the TableError that `encode`
    raises for the item."""
    said: dict[int, list[Sentence] | TableError] = {}
    prompts: dict[int, list[int]] = {}
    for number, item in enumerate(items):
        try:
            prompts[number] = encode(item)
        except TableError as error:
            said[number] = error
    own_seeds = [0 if seeds is None else seeds[number] for number in prompts]
    new = generate(list(prompts.values()), own_seeds)
    for number, sequences in zip(prompts, new, strict=True):
        said[number] = [Sentence(one_line(decode(ids)), score) for ids, score in sequences]
    return [said[number] for number in range(len(items))]


def check_room(length: int, room: int, what: str) -> None:
    """Raises TableError unless a prompt of `length` tokens leaves room for a new one."""
    if length >= room:
        why = f"the {what} has {length} tokens, and the model has room for {room - 1}"
        raise TableError(why, 0)


def one_line(text: str) -> str:
    """Text on one line: control characters count as white space, which is collapsed and trimmed."""
    return " ".join(_CONTROL.sub(" ", text).split())
