"""Plain text to pretrain on: files of documents, and windows of tokens cut from them.

A file is `.txt` or `.txt.xz`, UTF-8, with or without a byte order mark, its documents separated by
a line `<|endoftext|>`.
"""

import lzma
from collections.abc import Iterator
from pathlib import Path

from mingpt_prefix.data.tokenizer import END_OF_TEXT
from mingpt_prefix.errors import DataError, shown


def documents(path: Path) -> Iterator[str]:
    """The documents of one file, in order, without the lines that separate them.

    Raises:
        DataError: naming the file, when it is missing, damaged, not UTF-8, or holds no text.
    """
    name = shown(path)
    if not path.name.endswith((".txt", ".txt.xz")):
        raise DataError(f"{name}: the name must end in .txt or .txt.xz")
    lines: list[str] = []
    found = False
    try:
        with (lzma.open if path.suffix == ".xz" else open)(
            path, "rt", encoding="utf-8-sig"
        ) as file:
            for line in file:
                if line.strip() != END_OF_TEXT:
                    lines.append(line)
                    continue
                document, lines = "".join(lines).strip("\n"), []
                if document:
                    found = True
                    yield document
    except (OSError, lzma.LZMAError, EOFError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{name}: {why}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: byte 0x{error.object[error.start]:02x} is not UTF-8") from None
    if document := "".join(lines).strip("\n"):
        yield document
    elif not found:
        raise DataError(f"{name}: no text in it")
