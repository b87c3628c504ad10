"""How files of learned adapters (prefixes, LoRA, calls) are saved and loaded.

    FORMAT = AdapterFormat("prefix", "mingpt_prefix", PrefixInfo, 2, PrefixError)
    FORMAT.save(path, {"prefix_kv": rows}, info)
    tensors, info = FORMAT.load(path)

A file is safetensors: fp32 tensors, and all metadata as one JSON string under one key, because
several keys are written in random order, and equal adapters give equal bytes. Since version 2 of
each format the metadata hold a SHA-256 over tensors and metadata.
"""

import contextlib
import dataclasses
import json
import string
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mingpt_prefix.checkpoints.atomic_write import write_atomically
from mingpt_prefix.checkpoints.digest import UNREADABLE, digest_of
from mingpt_prefix.checkpoints.file_kinds import instead_of
from mingpt_prefix.config import MODELS
from mingpt_prefix.errors import AdapterError, printable, reason, shown

# gpt2-xl with the longest prefix has 0.6 GiB; the metadata are a few hundred bytes.
FILE_LIMIT, _HEADER_LIMIT = 1 << 30, 1 << 20
_DIGEST, _FIRST_WITH_DIGEST = "sha256", 2


@dataclass(frozen=True)
class AdapterFormat:
    """One kind of file. `info` is the dataclass of its metadata, which are kept under `key`: its
    fields are plain JSON types, `version` and the base model's `fingerprint` among them. It raises
    `error` by `check` for values that cannot be, and by `check_shapes` for tensors that are not
    what it says."""

    kind: str
    key: str
    info: type
    version: int
    error: type[AdapterError]

    def save(self, path: Path, tensors: dict[str, Tensor], info: Any) -> None:
        """Write fp32 tensors and `info`, whole or not at all; raises `error`, naming the file."""
        with self.naming(path):
            held = {n: t.detach().to("cpu", torch.float32) for n, t in tensors.items()}
            held = {name: tensor.contiguous() for name, tensor in held.items()}
            info.check_shapes({name: tuple(tensor.shape) for name, tensor in held.items()})
            for name, tensor in held.items():
                self.check_values(name, tensor)
            write_atomically(path, save(held, metadata=self.metadata(info, held)))

    def load(self, path: Path) -> tuple[dict[str, Tensor], Any]:
        """The tensors and the info of a file, verified; raises `error`, naming the file."""
        with self.reading(path), safe_open(path, "pt") as file:
            info, names = self.parse(file), list(file.keys())
            info.check_shapes({name: tuple(file.get_slice(name).get_shape()) for name in names})
            return {name: self._read(file, name) for name in names}, info

    def _read(self, file: safe_open, name: str) -> Tensor:
        if (dtype := file.get_slice(name).get_dtype()) != "F32":
            raise self.error(f"{name} has dtype {dtype}, not F32")
        tensor = file.get_tensor(name).clone()  # what is read is a window on the file
        self.check_values(name, tensor)
        return tensor

    @contextlib.contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        """What goes wrong while the safetensors file `path` is read, as `error` that names it."""
        with self.naming(path):
            self._check_size(path)
            yield

    def claims(self, path: Path) -> bool:
        """Whether a file says that it is of this kind; one that cannot be read does not."""
        try:
            with self.reading(path), safe_open(path, "pt") as file:
                return self.key in (file.metadata() or {})
        except AdapterError:
            return False

    @contextlib.contextmanager
    def naming(self, path: Path) -> Iterator[None]:
        """What goes wrong with the file `path`, as `error` that names it."""
        name = shown(path)
        try:
            yield
        except AdapterError as error:
            raise self.error(f"{name}: {error}") from None
        except SafetensorError as error:
            raise self.error(f"{name}: damaged: {reason(error)}") from None
        except (OSError, ValueError) as error:
            raise self.error(f"{name}: {reason(error)}") from None

    def metadata(self, info: Any, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """`info` as the metadata of a safetensors file of `tensors`, which `parse` reads back;
        raises `error` where it cannot be."""
        fields = {**dataclasses.asdict(info), "version": self.version}
        self._checked(fields)
        fields[_DIGEST] = digest_of(tensors, fields)
        return {self.key: json.dumps(fields, sort_keys=True, allow_nan=False)}

    def parse(self, file: safe_open) -> Any:
        """What the metadata of a safetensors file say, verified; raises `error`."""
        metadata = file.metadata()
        text = (metadata or {}).get(self.key)
        if text is None or len(metadata) != 1:
            raise self.error(f"not a {self.kind} file: its metadata must hold {self.key} alone")
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            raise self.error("damaged: the metadata are not valid JSON") from None
        digest = fields.pop(_DIGEST, None) if isinstance(fields, dict) else None
        info = self._checked(fields)
        if digest is not None or fields["version"] >= _FIRST_WITH_DIGEST:
            self._check_digest(file, fields, digest)
        return info

    def _check_digest(self, file: safe_open, fields: dict, digest: object) -> None:
        try:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = digest_of(tensors, fields)
        except UNREADABLE as error:
            raise self.error(f"damaged: {printable(str(error), 100)}") from None
        if digest != found:
            raise self.error("damaged: its SHA-256 differs")

    def _checked(self, fields: object) -> Any:
        """The info of these fields; raises `error` unless they are of this format."""
        version = fields.get("version") if isinstance(fields, dict) else None
        if type(version) is not int or version < 1:
            raise self.error("damaged: the metadata name no format version")
        if version > self.version:
            known = f"this program knows up to {self.version}: update it"
            raise self.error(f"format {version}, and {known}")
        types = {f.name: typing.get_origin(f.type) or f.type for f in dataclasses.fields(self.info)}
        if fields.keys() != types.keys():
            names = ", ".join(sorted(fields.keys() ^ types.keys()))
            what = f"missing or unknown in the metadata: {printable(names, 100)}"
            raise self.error(f"damaged: {what}")
        for name, expected in types.items():
            if type(fields[name]) is not expected:
                raise self.error(f"damaged: {name} is not of type {expected.__name__}")
        digest = fields["fingerprint"]
        if len(digest) != 64 or not set(digest) <= set(string.hexdigits.lower()):
            raise self.error("damaged: the fingerprint is no SHA-256")
        info = self.info(**fields)
        info.check()
        return info

    def check_values(self, name: str, tensor: Tensor) -> None:
        """Raises `error` where a value is not finite."""
        if not tensor.isfinite().all():
            raise self.error(f"{name} holds NaN or infinite values")

    def check_base(self, info: Any, fingerprint: str, name: str) -> None:
        """Raises `error` unless the file was made for the weights of this fingerprint."""
        if info.fingerprint != fingerprint:
            made_for = f"{printable(info.base) or 'a folder'} ({info.fingerprint[:8]})"
            given = f"{printable(name) or 'a folder'} ({fingerprint[:8]})"
            what = f"the {self.kind} was made for the weights of {made_for}, not of {given}"
            raise self.error(what)

    def base_to_load(self, info: Any, given: str | None, what: str = "") -> str:
        """The model to load for a file: `given`, or a known name in `info`, never a path; raises
        `error`, of the kind or else of `what`, where there is neither."""
        if given is None and info.base not in MODELS:
            made = "was made for a model in a folder or on the hub: name that with --model"
            raise self.error(f"the {what or self.kind} {made}")
        return info.base if given is None else given

    def _check_size(self, path: Path) -> None:
        """Refuses what must not be read whole: another kind of file, or far too much of it."""
        if not path.exists():
            raise self.error("no such file")
        if not path.is_file():
            raise self.error(instead_of(self.kind, path) or "not a file")
        if path.stat().st_size > FILE_LIMIT:
            raise self.error(f"larger than any {self.kind} ({FILE_LIMIT >> 20} MiB)")
        with path.open("rb") as file:
            if int.from_bytes(file.read(8), "little") > _HEADER_LIMIT:
                raise self.error("damaged: its header is too long")
        if other := instead_of(self.kind, path):
            raise self.error(other)
