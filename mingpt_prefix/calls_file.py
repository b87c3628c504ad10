"""The file of a bank's calls: the learned embeddings of special tokens, and whose they are.

    save_calls(path, model, ["films", "restaurants"], rows, {"seed": 0})
    calls, info = read_calls(path)

The file holds `calls` (N, C), as `mingpt_prefix.adapter_file` says.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mingpt_prefix.adapter_file import AdapterFormat
from mingpt_prefix.errors import PrefixError
from mingpt_prefix.model import GPT2
from mingpt_prefix.tables import printable

VERSION = 2
_TENSOR = "calls"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class CallsInfo:
    """Whose embeddings they are, in their order, for which base, and how they were trained."""

    base: str
    fingerprint: str
    names: list[str]
    training: dict[str, Any]
    version: int = VERSION

    @staticmethod
    def check(fields: dict) -> None:
        """Raises PrefixError for names that cannot be."""
        names = fields["names"]
        for name in names:
            check_name(name)
        if not names or len(set(names)) != len(names):
            raise PrefixError("damaged: no names in it, or one of them twice")


FORMAT = AdapterFormat("calls", "mingpt_prefix", CallsInfo, VERSION, PrefixError)


def save_calls(path: Path, model: GPT2, names: Sequence[str], rows: Tensor, training: dict) -> None:
    """Write the embeddings rows (N, C) of the calls of `names`, whole or not at all.

    Raises:
        PrefixError: when they are not finite, or cannot be written.
    """
    info = CallsInfo(model.name, model.fingerprint, list(names), training)
    FORMAT.save(path, {_TENSOR: rows}, info)


def read_calls(path: Path) -> tuple[dict[str, Tensor], CallsInfo]:
    """Read a file of calls, verified: the rows (C,) by name, and what is said of them.

    Raises:
        PrefixError: naming the file, when it is damaged, of a newer format, or no such file.
    """
    with FORMAT.open(path) as (file, info):
        if list(file.keys()) != [_TENSOR]:
            raise PrefixError(f"not a calls file: it must hold {_TENSOR} alone")
        shape = tuple(file.get_slice(_TENSOR).get_shape())
        if len(shape) != 2 or shape[0] != len(info.names):
            raise PrefixError(f"{_TENSOR} has shape {shape}, not a row for each of the names")
        rows = FORMAT.read_tensor(file, _TENSOR)
    return dict(zip(info.names, rows, strict=True)), info


def forget_call(path: Path, name: str) -> None:
    """Write the file anew without the call of `name`; without any, there is no file.

    Raises:
        PrefixError: when it cannot be read or written.
    """
    calls, info = read_calls(path)
    kept = [other for other in info.names if other != name]
    if kept:
        rows = torch.stack([calls[other] for other in kept])
        FORMAT.save(path, {_TENSOR: rows}, replace(info, names=kept))
    else:
        with FORMAT.naming(path):
            path.unlink()


def check_name(name: object, where: str = "") -> None:
    """Raises PrefixError, `where` in front, for what is not safe as the name of a prefix's file."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        what = "is no name: a-z, 0-9, - and _ make one, of 64 characters at most"
        raise PrefixError(f"{where}'{printable(str(name))}' {what}")
