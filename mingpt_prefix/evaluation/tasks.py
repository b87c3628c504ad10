"""What a run learns and is judged by: tables to sentences by BLEU, text by bits per byte.

task = load_task(config, model.config)
task.train_set, task.dev_set          # Encoded examples
task.score(model, prefix).line        # "dev BLEU 61.2"
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mingpt_prefix.batch import Encoded, PrefixKV, epoch_order
from mingpt_prefix.config import ModelConfig, TrainConfig
from mingpt_prefix.data.datasets import group_references, load_split
from mingpt_prefix.data.encoding import encode_example
from mingpt_prefix.data.parsing import LeftOut, told_left_out
from mingpt_prefix.data.pretraining import Corpus, bits_per_byte, read_corpus
from mingpt_prefix.data.rows import Columns
from mingpt_prefix.data.tables import TEXT_FORMAT, Table, format_table
from mingpt_prefix.data.templates import TEMPLATE_FORMAT, template_fields, text_format_of
from mingpt_prefix.data.tokenizer import Tokenizer, tokenizer_of
from mingpt_prefix.evaluation.faults import faults
from mingpt_prefix.evaluation.table_to_text import Pipeline, one_line
from mingpt_prefix.metrics.scores import bleu
from mingpt_prefix.model import GPT2

EXAMPLE = "name[The Mill], eatType[pub], food[French], area[riverside]"
_HELD_OUT_WINDOWS = 64  # in one dev loss of pretraining
_MAX_NAMES = 100


@dataclass(frozen=True)
class Score:
    """Figures by name, the same in words, and maybe lines that show an example."""

    values: dict[str, float] = field(default_factory=dict)
    line: str = ""
    sample: tuple[str, ...] = ()


class Task(Protocol):
    """Examples to train on and to take the dev loss on, and a score of what was learned; `note`
    says what of the data is in neither, or ""; `slots` are the names of the examples' slots."""

    note: str
    train_set: Sequence[Encoded]
    dev_set: Sequence[Encoded]
    slots: tuple[str, ...]

    def score(self, model: GPT2, prefix: PrefixKV | None) -> Score:
        """How good `model` is at the task, with `prefix`."""
        ...


def load_task(config: TrainConfig, shape: ModelConfig) -> Task:
    """Read and encode the run's data.

    Raises:
        ConfigError: when the model's tokenizer is not known.
        DataError: when the data is missing or bad.
    """
    tokenizer = tokenizer_of(shape)
    if config.mode == "pretrain":
        paths = [Path(name) for name in config.data]
        return TextTask(read_corpus(paths, tokenizer, config.block_size, shape.n_positions))
    return TableTask(
        config.data,
        tokenizer,
        config.limit_examples,
        config.seed,
        config.placement,
        text_format_of(config.input_template),
        config.text_field,
    )


class TableTask:
    """Tables to sentences; scored by BLEU of greedy output for each dev table, and of the sample
    data by the share of tables that are said without a fault.

    `example` is a table of its kind to try, as it is written.
    """

    def __init__(
        self,
        data: Sequence[str],
        tokenizer: Tokenizer,
        limit: int = 0,
        seed: int = 0,
        placement: str = "prefix",
        text_format: str = TEXT_FORMAT,
        text_field: str = "",
    ) -> None:
        self.tokenizer, self.placement, self.text_format = tokenizer, placement, text_format
        is_template = text_format.startswith(TEMPLATE_FORMAT)
        columns = Columns(template_fields(text_format) if is_template else (), text_field)
        left_out: LeftOut = {}
        dev = load_split(data, "dev", columns, left_out)
        examples = load_split(data, "train", columns, left_out)
        self.note = f"Of the data {told_left_out(left_out)}." if left_out else ""
        if limit:
            examples = [examples[i] for i in epoch_order(len(examples), seed, 0)[:limit].tolist()]
        self.slots = _slot_names(e.table for e in examples)
        self.train_set = [encode_example(tokenizer, e, text_format) for e in examples]
        self.dev_set = [encode_example(tokenizer, e, text_format) for e in dev]
        is_known = set(data) <= {"e2e", "sample"} and not is_template
        self.has_faults = tuple(data) == ("sample",)
        self.example = EXAMPLE if is_known else format_table((dev or examples)[0].table)
        self.dev_tables = group_references(dev)

    def score(self, model: GPT2, prefix: PrefixKV | None) -> Score:
        if not self.dev_tables:
            return Score()
        tables = [table for table, _ in self.dev_tables]
        # A table that leaves no room for a sentence gets an empty one.
        how = (prefix, self.text_format, self.placement)
        told = Pipeline(model, self.tokenizer, *how).write(tables)
        said = [text if isinstance(text, str) else "" for text in told]
        value = bleu(said, [texts for _, texts in self.dev_tables])
        table, texts = self.dev_tables[0]
        sample = (
            f"table      {format_table(table)}",
            f"output     {said[0]}",
            f"reference  {one_line(texts[0])}",
        )
        values, line = {"dev_bleu": value}, f"dev BLEU {100 * value:.1f}"
        if self.has_faults:
            pairs = zip(tables, said, strict=True)
            right = sum(not faults(table.slots, text) for table, text in pairs)
            values["dev_right"] = right / len(tables)
            line += f", {right} of {len(tables)} tables right"
        return Score(values, line, sample)


def _slot_names(tables: Iterable[Table]) -> tuple[str, ...]:
    """The tables' slot names, sorted; empty for triples, and for more than 100 names."""
    found: set[str] = set()
    for table in tables:
        found.update(name for name, *_ in table.slots)
        if table.is_triples or len(found) > _MAX_NAMES:
            return ()
    return tuple(sorted(found))


class TextTask:
    """Plain text; scored by bits per byte of the held-out documents."""

    example, slots = "", ()  # there is no table

    def __init__(self, corpus: Corpus) -> None:
        self.corpus, self.train_set, self.note = corpus, corpus.train, corpus.note
        every = -(-len(corpus.held_out) // _HELD_OUT_WINDOWS)
        self.dev_set = [corpus.held_out[i] for i in range(0, len(corpus.held_out), every)]

    def score(self, model: GPT2, prefix: PrefixKV | None) -> Score:
        value = bits_per_byte(model, self.corpus.held_out, self.corpus.held_out_bytes)
        return Score({"bits_per_byte": value}, f"held-out text {value:.3f} bits per byte")
