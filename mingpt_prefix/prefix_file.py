"""The file a prefix is kept in: its rows, and what they were made for and how.

    save_prefix(path, encoder().kv, info)
    kv, info = read_prefix(path)
    check_prefix(info, kv, model)

The file is safetensors: `prefix_kv` (L, 2, P, H, D) in fp32, and all metadata as one JSON string
under one key, for several keys are written in random order, and equal prefixes give equal bytes.
"""

import contextlib
import dataclasses
import hashlib
import json
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.config import PLACEMENTS
from mingpt_prefix.errors import PrefixError
from mingpt_prefix.files import write_atomically
from mingpt_prefix.model import GPT2
from mingpt_prefix.tables import printable

VERSION = 1
_TENSOR, METADATA = "prefix_kv", "mingpt_prefix"
# gpt2-xl with the longest prefix has 0.6 GiB; the metadata are a few hundred bytes.
_FILE_LIMIT, _HEADER_LIMIT = 1 << 30, 1 << 20


@dataclass(frozen=True)
class PrefixInfo:
    """What is saved beside the rows: the model they were made for, and how they were trained.

    `base` is the model's name, "" for a folder, and `fingerprint` that of its weights; `placement`
    says from which token on a sequence sees the rows; `training` holds settings as JSON has them.
    """

    base: str
    fingerprint: str
    length: int
    text_format: str
    placement: str
    training: dict[str, Any]
    version: int = VERSION


def save_prefix(path: Path, kv: Tensor, info: PrefixInfo) -> None:
    """Write kv (L, 2, P, H, D) and `info`, whole or not at all; equal prefixes give equal bytes.

    Raises:
        PrefixError: when they do not fit each other, are not finite, or cannot be written.
    """
    path = Path(path)
    name = printable(str(path), 200)
    try:
        _check_info(dataclasses.asdict(info))
        _check_shape(tuple(kv.shape), info.length)
        rows = kv.detach().to("cpu", torch.float32).contiguous()
        check_values(rows)
        write_atomically(path, save({_TENSOR: rows}, metadata=info_metadata(info)))
    except PrefixError as error:
        raise PrefixError(f"{name}: {error}") from None
    except OSError as error:
        raise PrefixError(f"{name}: {printable(error.strerror or str(error), 200)}") from None


def read_prefix(path: Path) -> tuple[PrefixKV, PrefixInfo]:
    """Read a prefix file, verified, to the CPU.

    Raises:
        PrefixError: naming the file, when it is missing, damaged, of a newer format, or no prefix.
    """
    path = Path(path)
    with reading(path), safe_open(path, "pt") as file:
        info = parse_info(file.metadata())
        if list(file.keys()) != [_TENSOR]:
            raise PrefixError(f"not a prefix file: it must hold {_TENSOR} alone")
        header = file.get_slice(_TENSOR)
        if header.get_dtype() != "F32":
            raise PrefixError(f"{_TENSOR} has dtype {header.get_dtype()}, not F32")
        _check_shape(tuple(header.get_shape()), info.length)
        # A copy: the tensor read is a window on the file.
        rows = file.get_tensor(_TENSOR).clone()
        check_values(rows)
    return PrefixKV.from_tensor(rows), info


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong while the safetensors file `path` is read, as a PrefixError that names it."""
    name = printable(str(path), 200)
    try:
        _check_size(path)
        yield
    except PrefixError as error:
        raise PrefixError(f"{name}: {error}") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise PrefixError(f"{name}: {printable(why, 200)}") from None
    except SafetensorError as error:
        raise PrefixError(f"{name}: damaged: {printable(str(error), 200)}") from None


def load_prefix(path: Path) -> PrefixKV:
    """The rows of a prefix file; raises PrefixError as `read_prefix`."""
    return read_prefix(path)[0]


def rows_digest(kv: PrefixKV) -> str:
    """SHA-256 of a prefix's rows as their file holds them."""
    return hashlib.sha256(kv.kv.to("cpu", torch.float32).contiguous().numpy()).hexdigest()


def check_prefix(info: PrefixInfo, kv: PrefixKV, model: GPT2) -> None:
    """Raises PrefixError unless the prefix was made for exactly this model."""
    if info.fingerprint != model.fingerprint:
        made_for = f"{printable(info.base) or 'a folder'} ({info.fingerprint[:8]})"
        given = f"{printable(model.name) or 'a folder'} ({model.fingerprint[:8]})"
        raise PrefixError(f"the prefix was made for the weights of {made_for}, not of {given}")
    config = model.config
    expected = (config.n_layer, 2, info.length, config.n_head, config.head_dim)
    if tuple(kv.kv.shape) != expected:
        raise PrefixError(
            f"the prefix has shape {tuple(kv.kv.shape)}, the model takes {expected} of it"
        )
    if info.length >= config.n_positions:
        raise PrefixError(
            f"the prefix has {info.length} rows; the model has {config.n_positions} positions"
        )


def _check_size(path: Path) -> None:
    """Refuses what must not be read whole: another kind of file, or far too much of it."""
    if not path.exists():
        raise PrefixError("no such file")
    if not path.is_file():
        raise PrefixError("not a file")
    if path.stat().st_size > _FILE_LIMIT:
        raise PrefixError(f"larger than any prefix ({_FILE_LIMIT >> 20} MiB)")
    with path.open("rb") as file:
        if int.from_bytes(file.read(8), "little") > _HEADER_LIMIT:
            raise PrefixError("damaged: its header is too long")


def _check_shape(shape: tuple[int, ...], length: int) -> None:
    if len(shape) != 5 or shape[1] != 2 or 0 in shape:
        raise PrefixError(f"{_TENSOR} has shape {shape}, not (L, 2, P, H, D)")
    if shape[2] != length:
        raise PrefixError(f"{_TENSOR} has {shape[2]} rows, its length says {length}")


def check_values(rows: Tensor) -> None:
    """Raises PrefixError where a value is not finite."""
    if not rows.isfinite().all():
        raise PrefixError(f"{_TENSOR} holds NaN or infinite values")


def info_metadata(info: PrefixInfo) -> dict[str, str]:
    """`info` as the metadata of a safetensors file, which `parse_info` reads back."""
    return {METADATA: json.dumps(dataclasses.asdict(info), sort_keys=True, allow_nan=False)}


def parse_info(metadata: dict[str, str] | None) -> PrefixInfo:
    """What the metadata of a safetensors file say of its prefix; raises PrefixError."""
    text = (metadata or {}).get(METADATA)
    if text is None or len(metadata) != 1:
        raise PrefixError(f"not a prefix file: its metadata must hold {METADATA} alone")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise PrefixError("damaged: the metadata are not valid JSON") from None
    _check_info(fields)
    return PrefixInfo(**fields)


def _check_info(fields: object) -> None:
    version = fields.get("version") if isinstance(fields, dict) else None
    if type(version) is not int or version < 1:
        raise PrefixError("damaged: the metadata name no format version")
    if version > VERSION:
        raise PrefixError(f"format {version}, and this program knows up to {VERSION}: update it")
    types = {"base": str, "fingerprint": str, "length": int, "text_format": str}
    types |= {"placement": str, "training": dict, "version": int}
    if fields.keys() != types.keys():
        names = ", ".join(sorted(fields.keys() ^ types.keys()))
        raise PrefixError(f"damaged: missing or unknown in the metadata: {printable(names, 100)}")
    for name, expected in types.items():
        if type(fields[name]) is not expected:
            raise PrefixError(f"damaged: {name} is not of type {expected.__name__}")
    digest = fields["fingerprint"]
    if len(digest) != 64 or not set(digest) <= set(string.hexdigits.lower()):
        raise PrefixError("damaged: the fingerprint is no SHA-256")
    if fields["length"] < 1:
        raise PrefixError(f"the length must be positive, not {fields['length']}")
    if fields["placement"] not in PLACEMENTS:
        shown, known = printable(fields["placement"]), ", ".join(PLACEMENTS)
        raise PrefixError(f"placement '{shown}' is unknown here; known: {known}")
