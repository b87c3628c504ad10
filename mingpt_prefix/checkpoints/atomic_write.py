"""Where downloads are kept, and files that are written whole or not at all."""

import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from mingpt_prefix.errors import DataError, shown

_OLD = re.compile(r"(.+)\.[0-9a-f]{32}\.old")
_PART = re.compile(r".+\.[0-9a-f]{32}\.part")


def cache_dir() -> Path:
    """The folder of downloads: `MINGPT_PREFIX_CACHE`, or `~/.cache/mingpt-prefix`.

    Raises:
        DataError: where there is no such home folder.
    """
    folder = os.environ.get("MINGPT_PREFIX_CACHE") or "~/.cache/mingpt-prefix"
    try:
        return Path(folder).expanduser()
    except RuntimeError:
        why = "no such home folder; set MINGPT_PREFIX_CACHE to a folder for downloads"
        raise DataError(f"{shown(folder)}: {why}") from None


def write_atomically(path: Path, data: bytes) -> None:
    """Make `data` the content of `path`, or leave it as it is: see `replace_atomically`."""
    replace_atomically(path, lambda part: part.write_bytes(data))


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, flush it to the disk, then rename it to `path`.

    It is written in a folder of its own, for libraries put files of other names beside it; a kill
    leaves that folder, for `remove_parts`.

    Raises:
        OSError: when it cannot be written; `path` is then as it was.
    """
    folder = part_of(path)
    try:
        folder.mkdir(parents=True)
        part = folder / path.name
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def part_of(path: Path) -> Path:
    """A new name beside `path`, for what is not yet whole."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")


def swap_in(part: Path, folder: Path) -> None:
    """Rename the folder `part` to `folder`; a folder that was there is deleted only then.

    A kill between the two renames leaves the old one under another name, for `remove_parts`.
    """
    if not folder.exists():
        os.replace(part, folder)
    else:
        old = part.with_suffix(".old")
        os.replace(folder, old)
        try:
            os.replace(part, folder)
        except OSError:
            os.replace(old, folder)
            raise
        shutil.rmtree(old)
    sync_folder(folder.parent)


def remove_parts(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder`, and undo half a `swap_in`."""
    for old in folder.glob("*.old"):
        if (match := _OLD.fullmatch(old.name)) is None:
            continue
        whole = old.with_name(match[1])
        if whole.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, whole)
    for part in folder.glob("*.part"):
        if not _PART.fullmatch(part.name):
            continue  # another program's
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system can; a rename lasts only then."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
