"""Write the sentence for a table, by the newest finished run or the one that is named.
    mingpt-prefix sample --table "name[The Mill], eatType[pub]"
    mingpt-prefix sample --input tables.txt --run runs/prefix-tiny-1 --beams 5
    mingpt-prefix sample --data e2e --split test --run runs/prefix-gpt2-1 > outputs.txt
    mingpt-prefix sample --input tables.txt --beams 5 --num-return-sequences 3 --scores
    cat tables.txt | mingpt-prefix sample --input - --temperature 0.8
    mingpt-prefix sample --bank prefixes --prompt "<|prefix:films|> title[The River], year[1931]"

Sentences go to stdout, one line per table (or --num-return-sequences lines); all else goes to
stderr. If one of many tables is bad, it gets empty lines, and the exit code is 1 at the end.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mingpt_prefix.cli.terminal import complain, parse, run_script
from mingpt_prefix.data.datasets import load_references
from mingpt_prefix.data.spellings import iter_tables
from mingpt_prefix.data.tables import Table, unseen_slots
from mingpt_prefix.errors import ConfigError, DataError, TableError, printable, shown
from mingpt_prefix.evaluation.sample_config import SampleConfig

if TYPE_CHECKING:
    from mingpt_prefix.bank.pipeline import BankPipeline
    from mingpt_prefix.evaluation.table_to_text import Pipeline, Sentence

CHUNK = 64  # tables that are read, written and printed together
GROUPS = ("tables", "data", "model", "bank", "decoding", "machine")
MAX_LINE_BYTES = 1 << 16  # a longer line is cut: no table is that long


def main(argv: Sequence[str] | None = None, prog: str = "mingpt-prefix sample") -> int:
    """The whole program; returns the exit code."""
    return run_script(prog, lambda: run(argv, prog))


def run(argv: Sequence[str] | None, prog: str) -> int:
    """The whole program, but for how it ends when something goes wrong."""
    config = parse(SampleConfig, argv, prog, __doc__, GROUPS)
    given = (config.table, config.input, config.data, config.prompts, config.prompt or None)
    if [each is None for each in given].count(False) != 1:
        flags = "--table, --input, --data, --prompt and --prompts"
        raise ConfigError(f"one of {flags} is needed, and only one")
    if config.bank is None and (config.prompt or config.prompts is not None):
        raise ConfigError("--prompt and --prompts need --bank")
    if config.data is None and (config.split or config.text_field):
        raise ConfigError("--split and --text-field need --data")
    with open_items(config) as items:
        return write_all(config, items)


def write_all(config: SampleConfig, items: Iterator[tuple[int, Any]]) -> int:
    """Write a sentence for each numbered item; returns the exit code."""
    decoding, writer, failed = config.decoding, None, False
    warned: set[str] = set()
    is_file = config.table is None and not config.prompt
    while chunk := list(islice(items, CHUNK)):
        good = [(number, item) for number, item in chunk if not isinstance(item, TableError)]
        if not is_file and not good:
            raise chunk[0][1]
        writer = writer or open_by(config)
        if config.bank is None:
            warn_of_slots([table for _, table in good], writer, warned)
        seeds = [config.seed_of(number) for number, _ in good]
        written = writer.write_scored([item for _, item in good], decoding, seeds)
        results = {**dict(chunk), **dict(zip((n for n, _ in good), written, strict=True))}
        bad = [result for result in results.values() if isinstance(result, TableError)]
        if bad and not is_file:
            raise bad[0]
        for number, result in results.items():
            if isinstance(result, TableError):
                failed = True
                complain(f"line {number}: {result}")
            for line in lines_of(result, config):
                print(line)
        sys.stdout.flush()
    if writer is None:
        name = shown(config.input or config.prompts)
        raise DataError(f"{name}: no {'tables' if config.prompts is None else 'prompts'} in it")
    return int(failed)


def open_by(config: SampleConfig) -> "Pipeline | BankPipeline":
    """What writes, by the flags; it is told on stderr."""
    # Imported here, for it brings torch, which takes seconds: bad input is told before.
    if config.bank is not None:
        from mingpt_prefix.bank.pipeline import open_bank

        writer = open_bank(config)
    else:
        from mingpt_prefix.evaluation.pipeline import open_pipeline

        writer = open_pipeline(config)
    print(f"Using {writer.origin}.", file=sys.stderr)
    return writer


def warn_of_slots(tables: list[Table], writer: "Pipeline", warned: set[str]) -> None:
    """On stderr, once each: slots that training never saw; `warned` has those told before."""
    if writer.slots:
        unseen = (name for table in tables for name in unseen_slots(table, writer.slots))
        if new := [name for name in dict.fromkeys(unseen) if name not in warned]:
            warned.update(new)
            saw = printable(", ".join(writer.slots), 200)
            names = printable(", ".join(new), 200)
            complain(f"warning: slots missing from the training data: {names} (it has {saw})")


def iter_prompts(lines: Iterator[str]) -> Iterator[tuple[int, str]]:
    """One prompt a line: (line number from 1, the prompt)."""
    for number, line in enumerate(lines, 1):
        yield number, line.removeprefix("\ufeff").rstrip("\r\n")


def lines_of(result: "list[Sentence] | TableError", config: SampleConfig) -> list[str]:
    """What is printed for one table."""
    if isinstance(result, TableError):
        return [""] * config.num_return_sequences
    return [f"{s.score:.4f}\t{s.text}" if config.scores else s.text for s in result]


@contextlib.contextmanager
def open_items(config: SampleConfig) -> Iterator[Iterator[tuple[int, Any]]]:
    """(number, a table, a prompt or a TableError) of each that is to be written for."""
    if config.data is not None:
        groups = load_references(config.data, config.split or "test", config.columns)
        yield iter(enumerate((table for table, _ in groups), 1))
        return
    with open_lines(config) as lines:
        if config.prompt or config.prompts:
            yield iter_prompts(lines)
        else:
            is_csv = Path(config.input or "").suffix.lower() in (".csv", ".tsv")
            yield iter_tables(lines, config.columns if is_csv else None)


@contextlib.contextmanager
def open_lines(config: SampleConfig) -> Iterator[Iterator[str]]:
    """The lines that hold a table or a prompt each."""
    source = config.input if config.prompts is None else config.prompts
    if source is None:
        yield iter([config.table] if config.table is not None else config.prompt)
    elif source == "-":
        yield read_lines(sys.stdin.buffer, "stdin")
    else:
        name = shown(source)
        try:
            file = open(source, "rb")
        except (OSError, ValueError) as error:
            raise DataError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
        with file:
            yield read_lines(file, name)


def read_lines(file: IO[bytes], name: str) -> Iterator[str]:
    """Lines, one at a time; of one that is too long the beginning, which is no table."""
    try:
        while line := file.readline(MAX_LINE_BYTES):
            rest = line
            while len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE_BYTES)
            # Bytes that are not UTF-8 become surrogates, which no table may hold.
            yield line.decode(errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from None
