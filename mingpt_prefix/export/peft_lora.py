"""LoRA in PEFT's form: `lora_A.weight` (r, in) and `lora_B.weight` (out, r) of each weight.

    write_lora_adapter(folder, low_rank, info)      # adapter_config.json, adapter_model.safetensors
    adapter = read_lora_adapter(folder)

Ours are the same matrices transposed, those of all layers in one tensor. PEFT scales their product
by `lora_alpha` / r, and by `lora_alpha` / sqrt(r) where `use_rslora` is set (Kalajdzievski 2023),
which is another alpha of ours. Its relatives that compute something else are refused.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from mingpt_prefix.adapters.lora_file import FORMAT, LoraInfo
from mingpt_prefix.config import TARGETS
from mingpt_prefix.errors import LoraError, printable
from mingpt_prefix.export.peft_folder import (
    CONFIG_FILE,
    check_type,
    named_base,
    open_weights,
    own_info,
    read_config,
    read_values,
    sizes_of,
    write_folder,
)
from mingpt_prefix.lora import LowRank

PEFT_TYPE = "LORA"
_TARGET = "|".join(map(re.escape, TARGETS))
_NAME = re.compile(
    rf"base_model\.model\.(?:transformer\.)?h\.(\d{{1,4}})\.({_TARGET})\.lora_([AB])\.weight"
)
# What changes the sum x W + scale * (x A) B, or the scale of a part of it.
_OTHER = (
    "use_dora", "use_qalora", "use_bdlora", "rank_pattern", "alpha_pattern", "layer_replication",
    "alora_invocation_tokens", "modules_to_save", "target_parameters", "trainable_token_indices",
    "arrow_config",
)  # fmt: skip
# Beginnings that leave the base's weights as they are; others put what is left of them there.
_PLAIN_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
_MOST_ALPHA = 1e30


@dataclass(frozen=True)
class LoraAdapter:
    """What an adapter folder holds: the changes, their rank and alpha, the known model that it
    names or "", and, in a folder that `write_lora_adapter` wrote, what was saved with them."""

    low_rank: LowRank
    rank: int
    alpha: float
    base: str
    info: LoraInfo | None

    @property
    def targets(self) -> list[str]:
        return sorted(self.low_rank.factors)


def write_lora_adapter(
    folder: Path, low_rank: LowRank, info: LoraInfo, base: str | None = None
) -> None:
    """Write a folder that `PeftModel.from_pretrained` loads; `base` is its model's name or path.

    Equal changes give equal bytes.

    Raises:
        LoraError: when it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for target, pair in low_rank.factors.items():
        for letter, factor in zip("AB", pair, strict=True):
            for layer, matrix in enumerate(factor):
                name = f"base_model.model.transformer.h.{layer}.{target}.lora_{letter}.weight"
                tensors[name] = matrix.t().contiguous()
    config = {
        "bias": "none",
        "fan_in_fan_out": True,
        "lora_alpha": info.alpha,
        "lora_dropout": 0.0,
        "peft_type": PEFT_TYPE,
        "r": info.rank,
        "target_modules": info.targets,
    }
    write_folder(folder, config, tensors, info, FORMAT, base)


def read_lora_adapter(folder: Path) -> LoraAdapter:
    """Read LoRA that PEFT, or `write_lora_adapter`, saved, to the CPU.

    Raises:
        LoraError, WeightsError: naming the file, when it is missing, damaged, or something else.
    """
    config = read_config(folder)
    with FORMAT.naming(folder / CONFIG_FILE):
        rank, alpha = _check_config(config)
    with open_weights(folder, FORMAT) as file:
        factors = {
            target: (_stack(file, names["A"], rank, 0), _stack(file, names["B"], rank, 1))
            for target, names in _sorted_names(file).items()
        }
        info = own_info(file, FORMAT)
        if info is not None and (info.rank, info.alpha) != (rank, alpha):
            said = f"rank {info.rank} and alpha {info.alpha:g}"
            raise LoraError(f"it was saved with {said}; {CONFIG_FILE} says {rank} and {alpha:g}")
    return LoraAdapter(LowRank(factors, alpha / rank), rank, alpha, named_base(config), info)


def _check_config(config: dict) -> tuple[int, float]:
    """Rank and alpha that an adapter_config.json says, verified."""
    check_type(config, PEFT_TYPE, FORMAT)
    for name in _OTHER:
        if config.get(name):
            raise LoraError(f"{name} is set, which is not LoRA as it is known here")
    if (beginning := config.get("init_lora_weights")) not in _PLAIN_BEGINNINGS:
        shown = printable(str(beginning), 60)
        raise LoraError(f"init_lora_weights is '{shown}', which changed the base's weights too")
    (rank,) = sizes_of(config, ("r",), FORMAT)
    alpha = config.get("lora_alpha")
    if type(alpha) not in (int, float) or not 0 < alpha <= _MOST_ALPHA:
        raise LoraError("lora_alpha must be a positive number")
    return rank, float(alpha) * (rank**0.5 if config.get("use_rslora") else 1.0)


def _sorted_names(file: safe_open) -> dict[str, dict[str, list[str]]]:
    """The tensors' names by target, and by "A" and "B", those of all layers in order."""
    found: dict[str, dict[tuple[str, int], str]] = {}
    for name in file.keys():  # noqa: SIM118
        if (match := _NAME.fullmatch(name)) is None:
            raise LoraError(f"{printable(name, 100)}: no change of a block's weight by LoRA")
        layer, target, letter = int(match[1]), match[2], match[3]
        if found.setdefault(target, {}).setdefault((letter, layer), name) != name:
            raise LoraError(f"{name}: it is there by another name too")
    layers = range(1 + max((layer for names in found.values() for _, layer in names), default=-1))
    expected = {(letter, layer) for letter in "AB" for layer in layers}
    for target, names in found.items():
        if missing := sorted(expected - names.keys()):
            letter, layer = missing[0]
            raise LoraError(f"lora_{letter} of {target} in layer {layer} is missing")
    if not found:
        raise LoraError("it holds no tensors")
    return {
        target: {letter: [names[letter, layer] for layer in layers] for letter in "AB"}
        for target, names in found.items()
    }


def _stack(file: safe_open, names: list[str], rank: int, side: int) -> Tensor:
    """The matrices of all layers, transposed: (L, in, r) or (L, r, out).

    `side` is where the rank stands in PEFT's shape; how long the other is, the first one says.
    """
    first = tuple(file.get_slice(names[0]).get_shape())
    if len(first) != 2 or first[side] != rank:
        raise LoraError(f"{names[0]} has shape {first}; {CONFIG_FILE} says that r is {rank}")
    return torch.stack([read_values(file, name, first, FORMAT).t() for name in names])
