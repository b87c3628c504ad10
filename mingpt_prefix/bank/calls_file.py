"""The file of a bank's calls: the learned embeddings of special tokens, and whose they are.

    save_calls(path, model, {"films": Call(row, quiet), "restaurants": other}, {"seed": 0})
    calls, info = read_calls(path)

The file holds `calls` (N, C) and, since version 3, `quiet` (N, J, C), which `bank.calls` explains;
otherwise it is as `mingpt_prefix.adapters.adapter_file` says.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mingpt_prefix.adapters.adapter_file import AdapterFormat
from mingpt_prefix.errors import PrefixError, printable
from mingpt_prefix.model import GPT2

VERSION = 3
_CALLS, _QUIET, _FIRST_WITH_QUIET = "calls", "quiet", 3
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Call:
    """What is learned of a call: its row (C,), and its quiet rows (J, C), of which J may be 0."""

    row: Tensor
    quiet: Tensor


@dataclass(frozen=True)
class CallsInfo:
    """Whose embeddings they are, in their order, for which base, and how they were trained."""

    base: str
    fingerprint: str
    names: list[str]
    training: dict[str, Any]
    version: int = VERSION

    def check(self) -> None:
        """Raises PrefixError for names that cannot be."""
        for name in self.names:
            check_name(name)
        if not self.names or len(set(self.names)) != len(self.names):
            raise PrefixError("damaged: no names in it, or one of them twice")

    def check_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raises PrefixError unless there is a row for each of the names, and quiet rows."""
        held = [_CALLS, _QUIET] if self.version >= _FIRST_WITH_QUIET else [_CALLS]
        if sorted(shapes) != held:
            raise PrefixError(f"not a calls file: it must hold {' and '.join(held)} alone")
        shape, *rest = (shapes[name] for name in held)
        if len(shape) != 2 or shape[0] != len(self.names):
            raise PrefixError(f"{_CALLS} has shape {shape}, not a row for each of the names")
        for other in rest:
            if len(other) != 3 or other[::2] != shape:
                raise PrefixError(f"{_QUIET} has shape {other}, and {_CALLS} {shape}")


FORMAT = AdapterFormat("calls", "mingpt_prefix", CallsInfo, VERSION, PrefixError)


def save_calls(path: Path, model: GPT2, calls: Mapping[str, Call], training: dict) -> None:
    """Write learned calls of `model` by name, whole or not at all.

    Raises:
        PrefixError: when they are not finite, or cannot be written.
    """
    info = CallsInfo(model.name, model.fingerprint, list(calls), training)
    FORMAT.save(path, _tensors(calls), info)


def read_calls(path: Path) -> tuple[dict[str, Call], CallsInfo]:
    """Read a file of calls, verified: each by its name, and what is said of them.

    Raises:
        PrefixError: naming the file, when it is damaged, of a newer format, or no such file.
    """
    tensors, info = FORMAT.load(path)
    rows = tensors[_CALLS]
    quiet = tensors.get(_QUIET, rows[:, None][:, :0])
    named = zip(info.names, rows, quiet, strict=True)
    return {name: Call(row, own) for name, row, own in named}, info


def forget_call(path: Path, name: str) -> None:
    """Write the file anew without the call of `name`; without any, there is no file.

    Raises:
        PrefixError: when it cannot be read or written.
    """
    calls, info = read_calls(path)
    kept = {other: call for other, call in calls.items() if other != name}
    if kept:
        FORMAT.save(path, _tensors(kept), replace(info, names=list(kept), version=VERSION))
    else:
        with FORMAT.naming(path):
            path.unlink()


def _tensors(calls: Mapping[str, Call]) -> dict[str, Tensor]:
    return {
        _CALLS: torch.stack([call.row for call in calls.values()]),
        _QUIET: torch.stack([call.quiet for call in calls.values()]),
    }


def check_name(name: object, where: str = "") -> None:
    """Raises PrefixError, `where` in front, for what is not safe as the name of a prefix's file."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        what = "is no name: a-z, 0-9, - and _ make one, of 64 characters at most"
        raise PrefixError(f"{where}'{printable(str(name))}' {what}")
