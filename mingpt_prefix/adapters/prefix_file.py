"""Prefix files: the rows, the model they were trained on, and how.

    save_prefix(path, encoder().kv, info)
    kv, info = read_prefix(path)
    check_prefix(info, kv, model)

The file contains `prefix_kv` (L, 2, P, H, D); its format is that of `adapters.adapter_file`.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mingpt_prefix.adapters.adapter_file import AdapterFormat
from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.config import PLACEMENTS
from mingpt_prefix.errors import PrefixError, printable
from mingpt_prefix.model import GPT2

VERSION = 2
_TENSOR = "prefix_kv"


@dataclass(frozen=True)
class PrefixInfo:
    """Metadata of the rows: the model they were trained on, and how.

    `base` is the model's name, "" for a folder, and `fingerprint` that of its weights; `placement`
    decides from which token on a sequence sees the rows; `training` holds the settings, as JSON.
    """

    base: str
    fingerprint: str
    length: int
    text_format: str
    placement: str
    training: dict[str, Any]
    version: int = VERSION

    @property
    def is_beside_lora(self) -> bool:
        """Whether it was trained together with LoRA; `fingerprint` is then that of the weights with
        LoRA folded in."""
        return self.training.get("mode") == "prefix+lora"

    def check(self) -> None:
        """Raises PrefixError for impossible values."""
        if self.length < 1:
            raise PrefixError(f"the length must be positive, not {self.length}")
        if self.placement not in PLACEMENTS:
            shown, known = printable(self.placement), ", ".join(PLACEMENTS)
            raise PrefixError(f"placement '{shown}' is unknown here; known: {known}")

    def check_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raises PrefixError unless the file holds the rows, `length` of them, and nothing else."""
        if list(shapes) != [_TENSOR]:
            raise PrefixError(f"not a prefix file: it must hold {_TENSOR} alone")
        shape = shapes[_TENSOR]
        if len(shape) != 5 or shape[1] != 2 or 0 in shape:
            raise PrefixError(f"{_TENSOR} has shape {shape}, not (L, 2, P, H, D)")
        if shape[2] != self.length:
            raise PrefixError(f"{_TENSOR} has {shape[2]} rows, its length says {self.length}")


FORMAT = AdapterFormat("prefix", "mingpt_prefix", PrefixInfo, VERSION, PrefixError)


def save_prefix(path: Path, kv: Tensor, info: PrefixInfo) -> None:
    """Write kv (L, 2, P, H, D) and `info` atomically; equal prefixes give equal bytes.

    Raises:
        PrefixError: if they do not fit each other, are not finite, or cannot be written.
    """
    FORMAT.save(Path(path), {_TENSOR: kv}, info)


def read_prefix(path: Path) -> tuple[PrefixKV, PrefixInfo]:
    """Load and verify a prefix file, on the CPU.

    Raises:
        PrefixError: naming the file, if it is missing, damaged, too new, or not a prefix.
    """
    tensors, info = FORMAT.load(Path(path))
    return PrefixKV.from_tensor(tensors[_TENSOR]), info


def read_fitting(path: Path, model: GPT2) -> tuple[PrefixKV, PrefixInfo]:
    """`read_prefix` for a prefix that must fit this model.

    Raises:
        PrefixError: naming the file, like `read_prefix` and `check_prefix`.
    """
    kv, info = read_prefix(path)
    with FORMAT.naming(path):
        check_prefix(info, kv, model)
    return kv, info


def load_prefix(path: Path) -> PrefixKV:
    """The rows of a prefix file, kv (L, 2, P, H, D), on the CPU; raises PrefixError as
    `read_prefix`."""
    return read_prefix(path)[0]


def rows_digest(kv: PrefixKV) -> str:
    """SHA-256 of a prefix's rows, as stored in its file."""
    return hashlib.sha256(kv.kv.to("cpu", torch.float32).contiguous().numpy()).hexdigest()


def check_prefix(info: PrefixInfo, kv: PrefixKV, model: GPT2) -> None:
    """Raises PrefixError unless the prefix was trained on exactly this model."""
    if info.is_beside_lora and info.fingerprint != model.fingerprint:
        how = "name the run that they are both in; sample.py takes both files too, by --lora"
        raise PrefixError(f"the prefix was trained with LoRA: {how}")
    FORMAT.check_base(info, model.fingerprint, model.name)
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


def check_alone(info: PrefixInfo) -> None:
    """Raises PrefixError for a prefix that was trained together with LoRA, and needs it."""
    if info.is_beside_lora:
        raise PrefixError("the prefix was trained with LoRA, and needs it")
