"""The prefix: P key/value rows a layer, how they are learned, and the file they are kept in.

Li & Liang (2021), section 4.3: rows optimised directly are unstable, so they are computed from a
smaller matrix by an MLP while training; only its output is kept.

    encoder = PrefixEncoder(model.config, length=5)
    hidden = model(tokens, positions, layout, encoder())
    save_prefix(path, encoder().kv, info)

The file is safetensors: `prefix_kv` (L, 2, P, H, D) in fp32, and all metadata as one JSON string
under one key, for several keys are written in random order, and equal prefixes give equal bytes.
"""

import dataclasses
import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import skip_init

from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.config import ModelConfig
from mingpt_prefix.errors import ConfigError, PrefixError
from mingpt_prefix.files import write_atomically
from mingpt_prefix.model import GPT2
from mingpt_prefix.tables import printable

VERSION = 1
PLACEMENTS = ("prefix",)
_TENSOR, _METADATA = "prefix_kv", "mingpt_prefix"
# gpt2-xl with the longest prefix has 0.6 GiB; the metadata are a few hundred bytes.
_FILE_LIMIT, _HEADER_LIMIT = 1 << 30, 1 << 20
_DIRECT_STD = 0.3  # about as wide as the MLP's rows are at first


class PrefixEncoder(nn.Module):
    """P rows in training: `Embedding(P, C) -> Linear(C, mid) -> tanh -> Linear(mid, 2 * L * C)`.

    With reparam=False the rows are trained directly, as `kv` (L, 2, P, H, D). Layout and names of
    the MLP are PEFT's. Initial values depend on `seed` alone, and no other random state is used;
    `init_scale` multiplies the last weight's. Raises ConfigError for sizes that cannot be.
    """

    def __init__(
        self,
        config: ModelConfig,
        length: int,
        mid_dim: int = 512,
        reparam: bool = True,
        seed: int = 0,
        init_scale: float = 1.0,
    ):
        super().__init__()
        if not 0 < length < config.n_positions:
            most = config.n_positions - 1
            raise ConfigError(f"prefix-length must lie in 1 to {most} for this model, not {length}")
        if mid_dim < 1:
            raise ConfigError(f"mid_dim must be positive, not {mid_dim}")
        self.reparam = reparam
        self.shape = (config.n_layer, 2, length, config.n_head, config.head_dim)
        generator = torch.Generator().manual_seed(seed)
        if not reparam:
            self.kv = nn.Parameter(torch.empty(self.shape))
            nn.init.normal_(self.kv, std=_DIRECT_STD, generator=generator)
            return
        width = config.n_embd
        self.embedding = skip_init(nn.Embedding, length, width)
        self.transform = nn.Sequential(
            skip_init(nn.Linear, width, mid_dim),
            nn.Tanh(),
            skip_init(nn.Linear, mid_dim, 2 * config.n_layer * width),
        )
        # torch's own defaults, drawn from this generator.
        nn.init.normal_(self.embedding.weight, generator=generator)
        for linear in (self.transform[0], self.transform[2]):
            bound = linear.in_features**-0.5
            for parameter in (linear.weight, linear.bias):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        with torch.no_grad():
            self.transform[2].weight *= init_scale

    def forward(self) -> PrefixKV:
        """The P rows, in the parameters' dtype also under autocast, with their graph."""
        if not self.reparam:
            return PrefixKV.from_tensor(self.kv)
        n_layer, _, length, n_head, head_dim = self.shape
        with torch.autocast(self.embedding.weight.device.type, enabled=False):
            rows = self.transform(self.embedding.weight)  # (P, 2 * L * C)
        rows = rows.view(length, n_layer, 2, n_head, head_dim)  # (P, L, 2, H, D)
        return PrefixKV.from_tensor(rows.permute(1, 2, 0, 3, 4))  # (L, 2, P, H, D)


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
        _check_values(rows)
        text = json.dumps(dataclasses.asdict(info), sort_keys=True, allow_nan=False)
        write_atomically(path, save({_TENSOR: rows}, metadata={_METADATA: text}))
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
    name = printable(str(path), 200)
    try:
        _check_size(path)
        with safe_open(path, "pt") as file:
            info = _parse_info(file.metadata())
            if list(file.keys()) != [_TENSOR]:
                raise PrefixError(f"not a prefix file: it must hold {_TENSOR} alone")
            header = file.get_slice(_TENSOR)
            if header.get_dtype() != "F32":
                raise PrefixError(f"{_TENSOR} has dtype {header.get_dtype()}, not F32")
            _check_shape(tuple(header.get_shape()), info.length)
            # A copy: the tensor read is a window on the file.
            rows = file.get_tensor(_TENSOR).clone()
        _check_values(rows)
    except PrefixError as error:
        raise PrefixError(f"{name}: {error}") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise PrefixError(f"{name}: {printable(why, 200)}") from None
    except SafetensorError as error:
        raise PrefixError(f"{name}: damaged: {printable(str(error), 200)}") from None
    return PrefixKV.from_tensor(rows), info


def load_prefix(path: Path) -> PrefixKV:
    """The rows of a prefix file; raises PrefixError as `read_prefix`."""
    return read_prefix(path)[0]


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


def _check_values(rows: Tensor) -> None:
    if not rows.isfinite().all():
        raise PrefixError(f"{_TENSOR} holds NaN or infinite values")


def _parse_info(metadata: dict[str, str] | None) -> PrefixInfo:
    text = (metadata or {}).get(_METADATA)
    if text is None or len(metadata) != 1:
        raise PrefixError(f"not a prefix file: its metadata must hold {_METADATA} alone")
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
