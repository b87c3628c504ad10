"""The file of a bank's calls: the learned embeddings of special tokens, and whose they are.

    save_calls(path, model, ["films", "restaurants"], rows, {"seed": 0})
    calls, info = read_calls(path)

It is safetensors: `calls` (N, C) in fp32, and all metadata as one JSON string under one key.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from mingpt_prefix.errors import PrefixError
from mingpt_prefix.files import write_atomically
from mingpt_prefix.folder import reason, shown
from mingpt_prefix.model import GPT2
from mingpt_prefix.prefix_file import METADATA, check_values, reading
from mingpt_prefix.tables import printable

VERSION = 1
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


def save_calls(path: Path, model: GPT2, names: Sequence[str], rows: Tensor, training: dict) -> None:
    """Write the embeddings rows (N, C) of the calls of `names`, whole or not at all.

    Raises:
        PrefixError: when they are not finite, or cannot be written.
    """
    rows = rows.detach().to("cpu", torch.float32).contiguous()
    info = CallsInfo(model.name, model.fingerprint, list(names), training)
    text = json.dumps(asdict(info), sort_keys=True, allow_nan=False)
    try:
        check_values(rows)
        write_atomically(path, save({_TENSOR: rows}, metadata={METADATA: text}))
    except PrefixError as error:
        raise PrefixError(f"{shown(path)}: {error}") from None
    except OSError as error:
        raise PrefixError(f"{shown(path)}: {reason(error)}") from None


def read_calls(path: Path) -> tuple[dict[str, Tensor], CallsInfo]:
    """Read a file of calls, verified: the rows (C,) by name, and what is said of them.

    Raises:
        PrefixError: naming the file, when it is damaged, of a newer format, or no such file.
    """
    with reading(path), safe_open(path, "pt") as file:
        info = _parse_info(file.metadata())
        if list(file.keys()) != [_TENSOR]:
            raise PrefixError(f"not a file of calls: it must hold {_TENSOR} alone")
        header = file.get_slice(_TENSOR)
        shape, kind = tuple(header.get_shape()), header.get_dtype()
        if kind != "F32" or len(shape) != 2 or shape[0] != len(info.names):
            raise PrefixError(f"{_TENSOR} is {kind} of shape {shape}, not F32 of a row for a name")
        rows = file.get_tensor(_TENSOR).clone()
        check_values(rows)
    return dict(zip(info.names, rows, strict=True)), info


def _parse_info(metadata: dict[str, str] | None) -> CallsInfo:
    try:
        fields = json.loads((metadata or {}).get(METADATA, "null"))
    except (ValueError, RecursionError):
        raise PrefixError("damaged: the metadata are not valid JSON") from None
    types = {"base": str, "fingerprint": str, "names": list, "training": dict, "version": int}
    if not isinstance(fields, dict) or fields.keys() != types.keys():
        raise PrefixError("not a file of calls: its metadata are others")
    for name, expected in types.items():
        if type(fields[name]) is not expected:
            raise PrefixError(f"damaged: {name} is not of type {expected.__name__}")
    if fields["version"] > VERSION:
        what = f"format {fields['version']}, and this program knows up to {VERSION}: update it"
        raise PrefixError(what)
    names = fields["names"]
    for name in names:
        check_name(name)
    if not names or len(set(names)) != len(names):
        raise PrefixError("damaged: no names in it, or one of them twice")
    return CallsInfo(**fields)


def check_name(name: object, where: str = "") -> None:
    """Raises PrefixError, `where` in front, for what is not safe as the name of a prefix's file."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        what = "is no name: a-z, 0-9, - and _ make one, of 64 characters at most"
        raise PrefixError(f"{where}'{printable(str(name))}' {what}")
