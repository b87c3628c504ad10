"""The file LoRA is kept in: its matrices, and what they were made for and how.

    save_lora(path, lora(), info)
    model, info = load_folded("tiny", path)      # the base with the changes in its weights

The file holds TARGET.a (L, in, r) and TARGET.b (L, r, out) of each weight that is changed, as
`mingpt_prefix.adapters.adapter_file` says.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mingpt_prefix.adapters.adapter_file import AdapterFormat
from mingpt_prefix.checkpoints.pretrained import choose_device, choose_dtype, load_model
from mingpt_prefix.config import TARGETS, ModelConfig
from mingpt_prefix.errors import LoraError, printable
from mingpt_prefix.lora import LowRank, weight_sizes
from mingpt_prefix.model import GPT2

VERSION = 2


@dataclass(frozen=True)
class LoraInfo:
    """What is saved beside the matrices: the model they were made for, and how they were trained.

    `base` is the model's name, "" for a folder, and `fingerprint` that of its weights; the product
    of a target's matrices counts `alpha` / `rank`; `training` holds settings as JSON has them.
    """

    base: str
    fingerprint: str
    rank: int
    alpha: float
    targets: list[str]
    text_format: str
    training: dict[str, Any]
    version: int = VERSION

    def check(self) -> None:
        """Raises LoraError for values that cannot be."""
        if self.rank < 1:
            raise LoraError(f"the rank must be positive, not {self.rank}")
        if not 0 < self.alpha < float("inf"):
            raise LoraError(f"alpha must be positive, not {self.alpha}")
        known = [target for target in TARGETS if target in self.targets]
        if not self.targets or known != sorted(self.targets, key=str):
            shown, known = printable(repr(self.targets), 100), ", ".join(TARGETS)
            raise LoraError(f"the targets {shown} are unknown here; known: {known}")

    def check_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raises LoraError unless there are the targets' matrices and no others; their shapes are
        the model's to check."""
        expected = {f"{target}.{name}" for target in self.targets for name in "ab"}
        if shapes.keys() != expected:
            shown = printable(", ".join(sorted(shapes.keys() ^ expected)), 100)
            raise LoraError(f"missing or unexpected: {shown}")


FORMAT = AdapterFormat("LoRA", "mingpt_lora", LoraInfo, VERSION, LoraError)


def save_lora(path: Path, low_rank: LowRank, info: LoraInfo) -> None:
    """Write the matrices and `info`, whole or not at all; equal ones give equal bytes.

    Raises:
        LoraError: when they are not finite, do not fit each other, or cannot be written.
    """
    tensors = {}
    for target, pair in low_rank.factors.items():
        tensors |= {f"{target}.{name}": t for name, t in zip("ab", pair, strict=True)}
    FORMAT.save(path, tensors, info)


def read_lora(path: Path) -> tuple[LowRank, LoraInfo]:
    """Read a LoRA file, verified, to the CPU.

    Raises:
        LoraError: naming the file, when it is missing, damaged, of a newer format, or no LoRA.
    """
    tensors, info = FORMAT.load(Path(path))
    factors = {target: (tensors[f"{target}.a"], tensors[f"{target}.b"]) for target in info.targets}
    return LowRank(factors, info.alpha / info.rank), info


def check_lora(info: LoraInfo, low_rank: LowRank, model: GPT2) -> None:
    """Raises LoraError unless the changes were made for exactly this model."""
    FORMAT.check_base(info, model.fingerprint, model.name)
    check_shapes(info, low_rank, model.config)


def check_shapes(info: LoraInfo, low_rank: LowRank, config: ModelConfig) -> None:
    """Raises LoraError where a matrix has another shape than the model's weights take."""
    sizes = weight_sizes(config)
    for target, pair in low_rank.factors.items():
        n_in, n_out = sizes[target]
        shapes = (config.n_layer, n_in, info.rank), (config.n_layer, info.rank, n_out)
        for name, factor, shape in zip("ab", pair, shapes, strict=True):
            if tuple(factor.shape) != shape:
                found = tuple(factor.shape)
                raise LoraError(f"{target}.{name} has shape {found}, the model takes {shape} of it")


def load_folded(
    model: str | None,
    path: Path,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
) -> tuple[GPT2, LoraInfo]:
    """The model that a LoRA file was made for, with the changes added to its weights before they
    are cast to `dtype`; `model` None is the known name in the file.

    Raises:
        LoraError: as `read_lora`, and for another model than the file was made for.
        WeightsError, ConfigError: as `load_model`.
    """
    low_rank, info = read_lora(path)
    with FORMAT.naming(path):
        model = FORMAT.base_to_load(info, model)
    to_dtype = choose_dtype(dtype, choose_device(device))
    wide = "fp64" if to_dtype == torch.float64 else "fp32"
    loaded = load_model(model, device, wide, attention)
    with FORMAT.naming(path):
        check_lora(info, low_rank, loaded)
    return fold(loaded, low_rank).to(to_dtype), info


@torch.no_grad()
def fold(model: GPT2, low_rank: LowRank) -> GPT2:
    """Add the changes to the model's weights, in place and in their dtype: decoding then costs what
    it costs without LoRA. The model's fingerprint becomes `folded_fingerprint`."""
    for block, changes in zip(model.h, low_rank.layers(), strict=True):
        for target, change in changes.items():
            weight = block.get_submodule(target).weight
            a, b = change.a.to(weight), change.b.to(weight)
            weight.addmm_(a, b, alpha=change.scale)
    model.fingerprint = folded_fingerprint(model.fingerprint, low_rank)
    return model


def folded_fingerprint(base: str, low_rank: LowRank) -> str:
    """The fingerprint of a model with these changes, whose own weights have the fingerprint `base`:
    a prefix that was trained together with them fits no model without them."""
    return hashlib.sha256(f"{base} {changes_digest(low_rank)}".encode()).hexdigest()


def changes_digest(low_rank: LowRank) -> str:
    """SHA-256 over the factors and the scale."""
    digest = hashlib.sha256(repr(float(low_rank.scale)).encode())
    for target, pair in sorted(low_rank.factors.items()):
        for factor in pair:
            digest.update(f"{target} {tuple(factor.shape)}\n".encode())
            digest.update(factor.detach().to("cpu", torch.float32).contiguous().numpy())
    return digest.hexdigest()
