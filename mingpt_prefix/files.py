"""Where downloads are kept, and files that are written whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path


def cache_dir() -> Path:
    """The folder of downloads: `MINGPT_PREFIX_CACHE`, or `~/.cache/mingpt-prefix`."""
    return Path(os.environ.get("MINGPT_PREFIX_CACHE") or "~/.cache/mingpt-prefix").expanduser()


def write_atomically(path: Path, data: bytes) -> None:
    """Make `data` the content of `path`, or leave it as it is: see `replace_atomically`."""
    replace_atomically(path, lambda part: part.write_bytes(data))


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, flush it to the disk, then rename it to `path`.

    Raises:
        OSError: when it cannot be written; `path` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder`."""
    for part in folder.glob("*.part"):
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
