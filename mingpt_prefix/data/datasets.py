"""Where examples come from: the E2E release, the embedded sample, and the user's own files.

`load_split(["e2e"], "train")` gives a list of `Example`. A source is `e2e` (downloaded once, to
`cache_dir()`), `sample` (part of the package), a file, or a folder; readers.py has their formats.

A folder holds one file for each split: trainset/devset/testset_w_refs or train/dev/test (for dev
also valid or validation), as .csv, .tsv, .jsonl, .json or .xml, or DART's and the prefix-tuning
paper's E2E files under their own names; or, as WebNLG does, a folder of .xml files for each split.
A single file, and a folder without a dev file, set about 5 % of their tables aside as dev: those
whose hash is lowest, so that the choice depends on the tables alone, and all sentences of a table
stay together. A single table is never set aside.
"""

import hashlib
import http.client
import io
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from mingpt_prefix import tiny
from mingpt_prefix.checkpoints.atomic_write import cache_dir, write_atomically
from mingpt_prefix.config import Split
from mingpt_prefix.data.corpora import dart_files, webnlg_files
from mingpt_prefix.data.parsing import LeftOut, read_bytes
from mingpt_prefix.data.readers import SUFFIXES, read_csv, read_examples
from mingpt_prefix.data.rows import USUAL, Columns
from mingpt_prefix.data.tables import Example, Table, format_table
from mingpt_prefix.errors import DataError, meant, printable, shown

E2E_URL = "https://github.com/tuetschek/e2e-dataset/releases/download/v1.0.0/e2e-dataset.zip"
E2E_SHA256 = "1261064c01907af27e8cc39e0a29a81541f6ab69208c1cbfc1be95afbb49dfac"
DEV_SHARE = 0.05

_OFFICIAL_NAMES = {"train": "trainset", "dev": "devset", "test": "testset_w_refs"}
# What other people's folders and the paper's own call the splits.
_OTHER_NAMES = {"train": ("train",), "dev": ("dev", "valid", "validation"), "test": ("test",)}
_PAPER_FILES = {"train": "src1_train.txt", "dev": "src1_valid.txt", "test": "src1_test.txt"}
# The sample has a second test set, whose names are made of training's words.
_SAMPLE_NAMES = {**_OFFICIAL_NAMES, "test-known": "testset_known_w_refs"}
_E2E_FILE = "e2e-dataset.zip"
_MAX_DOWNLOAD = 1 << 24
_DOWNLOAD_TIMEOUT_S = 10.0


def load_split(
    sources: Sequence[str],
    split: Split,
    columns: Columns = USUAL,
    left_out: LeftOut | None = None,
) -> list[Example]:
    """Read one split of all sources, one after the other; `columns` are those of the user's own,
    and `left_out` counts as `read_examples` does.

    With several sources, a table that is dev in one of them is left out of train in the others.

    Raises:
        DataError: when a source is missing or bad, or nothing is left to train on.
    """
    examples = [
        example
        for source in sources
        for example in load_examples(source, split, columns=columns, left_out=left_out)
    ]
    if split == "train" and len(sources) > 1:
        dev = {example.table for example in load_split(sources, "dev", columns)}
        examples = [example for example in examples if example.table not in dev]
    if split != "dev" and not examples:
        raise DataError(f"no {split} examples in {printable(', '.join(sources), 200)}")
    return examples


def load_examples(
    source: str,
    split: Split,
    url: str = E2E_URL,
    columns: Columns = USUAL,
    left_out: LeftOut | None = None,
) -> list[Example]:
    """Read one split of one source: `e2e`, `sample`, a file, or a folder; see the module.

    `url` is where E2E is downloaded from when the cache does not hold it.

    Raises:
        DataError: when the source is missing, has no such split, or holds a bad row.
    """
    names = _SAMPLE_NAMES if source == "sample" else _OFFICIAL_NAMES
    if split not in names:
        raise DataError(f"unknown split '{split}'; known: {', '.join(names)}")
    member = f"{names[split]}.csv"
    if source == "e2e":
        with zipfile.ZipFile(io.BytesIO(_e2e_release(url))) as release:
            return read_csv(release.read(f"e2e-dataset/{member}"), f"e2e {member}", columns)
    if source == "sample":
        data = read_bytes(tiny.SAMPLE / member, f"sample {member}")
        return read_csv(data, f"sample {member}", columns)
    return _load_path(source, split, columns, left_out)


def group_references(examples: Iterable[Example]) -> list[tuple[Table, list[str]]]:
    """Gather the sentences of each table, tables in the order of their first appearance."""
    groups: dict[Table, list[str]] = {}
    for example in examples:
        groups.setdefault(example.table, []).append(example.text)
    return list(groups.items())


def load_references(
    source: str, split: Split, columns: Columns = USUAL
) -> list[tuple[Table, list[str]]]:
    """The tables of one split of one source, each with its sentences. A single file is a test split
    as it is.

    Raises:
        DataError: as `load_split`.
    """
    if split == "test" and Path(source).is_file():
        return group_references(read_examples(Path(source), columns))
    return group_references(load_split([source], split, columns))


def e2e_available() -> bool:
    """Whether the cache holds the official E2E release, intact; nothing is downloaded."""
    try:
        return _is_official((cache_dir() / _E2E_FILE).read_bytes())
    except (OSError, DataError):
        return False


def _load_path(
    source: str, split: Split, columns: Columns, left_out: LeftOut | None
) -> list[Example]:
    path = Path(source)
    name = shown(source)
    try:
        # An empty name would be the current folder.
        if not source or not path.exists():
            hint = meant(source, ("e2e", "sample")) or " (e2e and sample need none)"
            raise DataError(f"'{name}': no such file or folder{hint}")
        files = _split_files(path, name) if path.is_dir() else {"train": [path]}
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from None
    holds_out = split != "test" and "dev" not in files
    part = "train" if holds_out else split
    chosen = files.get(part)
    if chosen is None:
        what = f"{part}.csv in it (or {', '.join(SUFFIXES[1:])})"
        raise DataError(f"{name}: no {what if path.is_dir() else f'{part} split in it'}")
    examples = [example for file in chosen for example in read_examples(file, columns, left_out)]
    if not holds_out:
        return examples
    dev = _held_out(examples)
    return [example for example in examples if (example.table in dev) == (split == "dev")]


def _split_files(folder: Path, name: str) -> dict[str, list[Path]]:
    """Find the files of each split in a folder; one file and another for one split are refused."""
    files: dict[str, list[Path]] = {}
    for split, official in _OFFICIAL_NAMES.items():
        stems = (official, *_OTHER_NAMES[split])
        names = (_PAPER_FILES[split], *(stem + suffix for stem in stems for suffix in SUFFIXES))
        found = [folder / name for name in names if (folder / name).is_file()]
        found += dart_files(folder, split)
        if len(found) > 1:
            raise DataError(f"{name}: {found[0].name} and {found[1].name} are both {split}")
        if found := found or webnlg_files(folder / split):
            files[split] = found
    return files


def _held_out(examples: Iterable[Example]) -> set[Table]:
    """Choose the dev tables: the lowest hashes, at least one table, and never all of them."""
    digests = {
        example.table: hashlib.sha256(format_table(example.table).encode()).digest()
        for example in examples
    }
    tables = sorted(digests, key=digests.__getitem__)
    limit = int(DEV_SHARE * 2**32).to_bytes(4, "big")
    below = sum(digest < limit for digest in digests.values())
    return set(tables[: min(max(below, 1), len(tables) - 1)])


def _is_official(data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == E2E_SHA256


def _e2e_release(url: str) -> bytes:
    """Read the E2E release from the cache, downloading it first where it is missing."""
    path = cache_dir() / _E2E_FILE
    name = shown(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return _download(url, path)
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from None
    if not _is_official(data):
        raise DataError(f"{name}: not the official E2E release; delete it, or put {url} there")
    return data


def _download(url: str, path: Path) -> bytes:
    by_hand = f"; or put {shown(url)} at {shown(path)} by hand"
    try:
        with urllib.request.urlopen(url, timeout=_DOWNLOAD_TIMEOUT_S) as response:
            data = response.read(_MAX_DOWNLOAD)
            expected = int(response.headers.get("Content-Length") or len(data))
    except urllib.error.HTTPError as error:
        raise DataError(f"E2E download: the server said {error.code}; try later{by_hand}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = printable(str(getattr(error, "reason", error)), 100)
        raise DataError(f"E2E download: {why}; check the network{by_hand}") from None
    if len(data) < expected:
        what = f"cut off after {len(data):,} of {expected:,} bytes"
        raise DataError(f"E2E download: {what}; try again{by_hand}")
    if not _is_official(data):
        raise DataError(f"E2E download: not the official file (its SHA-256 differs){by_hand}")
    try:
        write_atomically(path, data)
    except OSError as error:
        why = f"{error.strerror or error}; set MINGPT_PREFIX_CACHE to a writable folder"
        raise DataError(f"{shown(path)}: {why}") from None
    return data
