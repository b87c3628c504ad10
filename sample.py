"""Write the sentence for a table, by the newest finished run or the one that is named.

python sample.py --table "name[The Mill], eatType[pub]"
python sample.py --input tables.txt --run runs/prefix-tiny-1 --beams 5
generate_tables | python sample.py --input - --temperature 0.8

Sentences go to stdout, one line a table; all else goes to stderr. Of many tables a bad one gets an
empty line, and the exit code is 1 at the end.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import IO

from mingpt_prefix.config import SampleConfig
from mingpt_prefix.errors import ConfigError, DataError, MingptPrefixError, TableError
from mingpt_prefix.readers import iter_tables
from mingpt_prefix.tables import printable

CHUNK = 64  # tables that are read, written and printed together
MAX_LINE_BYTES = 1 << 16  # a longer line is cut: no table is that long
INTERRUPTED, PIPE_CLOSED = 130, 141  # as a shell counts them


def main(argv: Sequence[str] | None = None) -> int:
    """The whole program; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    try:
        return run(argv)
    except MingptPrefixError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        drop_output()
        return PIPE_CLOSED
    except OSError as error:
        drop_output()
        return fail(f"cannot write: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        return fail("not enough memory for this model and so many beams")


def run(argv: Sequence[str] | None) -> int:
    # Imported here, for torch takes seconds: Ctrl-C is quiet during them too.
    from mingpt_prefix.console import parse

    config = parse(SampleConfig, argv, "sample.py", __doc__)
    if (config.table is None) == (config.input is None):
        raise ConfigError("one of --table and --input is needed, and only one")
    with open_lines(config) as lines:
        return write_all(config, lines)


def write_all(config: SampleConfig, lines: Iterator[str]) -> int:
    """Write a sentence for each line; returns the exit code."""
    from mingpt_prefix.writer import open_writer

    decoding, writer, failed = config.decoding, None, False
    tables = iter_tables(lines)
    while chunk := list(islice(tables, CHUNK)):
        good = [(number, table) for number, table in chunk if not isinstance(table, TableError)]
        if config.table is not None and not good:
            raise chunk[0][1]
        if writer is None:
            writer = open_writer(config)
            print(f"Writing by {writer.origin}.", file=sys.stderr)
        # A seed of its own for each line, so that equal tables are sampled differently.
        seeds = [config.seed * 1_000_003 + number for number, _ in good]
        written = writer.write([table for _, table in good], decoding, seeds)
        results = {**dict(chunk), **dict(zip((n for n, _ in good), written, strict=True))}
        for number, result in results.items():
            if isinstance(result, TableError):
                if config.table is not None:
                    raise result
                failed = True
                print(f"sample.py: line {number}: {result}", file=sys.stderr)
            print("" if isinstance(result, TableError) else result)
        sys.stdout.flush()
    if writer is None:
        raise DataError(f"{printable(config.input, 200)}: no tables in it")
    return int(failed)


@contextlib.contextmanager
def open_lines(config: SampleConfig) -> Iterator[Iterator[str]]:
    """The lines that hold a table each."""
    if config.table is not None:
        yield iter([config.table])
    elif config.input == "-":
        yield read_lines(sys.stdin.buffer, "stdin")
    else:
        name = printable(config.input, 200)
        try:
            file = open(config.input, "rb")
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


def fail(why: str) -> int:
    print(f"sample.py: {why}", file=sys.stderr)
    return 2


def drop_output() -> None:
    """Nothing can be written any more, also not when Python flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
