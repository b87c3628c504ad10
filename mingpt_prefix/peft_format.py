"""A prefix in the forms of other libraries: PEFT's adapter folder, transformers' past_key_values.

    write_adapter(folder, kv, info)      # adapter_config.json, adapter_model.safetensors
    adapter = read_adapter(folder)
    past_key_values(kv)                  # {"key.0": (1, H, P, D), "value.0": ..., "key.1": ...}

PEFT keeps a prefix as `prompt_embeddings` (P, L * 2 * C), with its MLP folded in if there was one
(`prefix_projection`), and counts positions from P on, as we do for a prefix in front. Neither
library is imported, and nothing pickled is read.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.errors import PrefixError
from mingpt_prefix.files import write_atomically
from mingpt_prefix.folder import read_json, reason, shown
from mingpt_prefix.hub import REPOS
from mingpt_prefix.prefix_file import FORMAT, PrefixInfo
from mingpt_prefix.tables import printable

CONFIG_FILE, WEIGHTS_FILE, PICKLED_FILE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
_TENSOR = "prompt_embeddings"
_DTYPES = ("F16", "BF16", "F32", "F64")
_SIZES = ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim")
_SIZE_LIMIT = 1 << 20


@dataclass(frozen=True)
class Adapter:
    """What an adapter folder holds: the rows, the known model that it names or "", and, in a folder
    that `write_adapter` wrote, what was saved with them."""

    prefix: PrefixKV
    base: str
    info: PrefixInfo | None


def write_adapter(folder: Path, prefix: PrefixKV, info: PrefixInfo) -> None:
    """Write a folder that `PeftModel.from_pretrained` loads; equal prefixes give equal bytes.

    Raises:
        PrefixError: for an infix, which PEFT does not have, and when it cannot be written.
    """
    check_in_front(info)
    kv = prefix.kv
    n_layer, _, length, n_head, head_dim = kv.shape
    flat = kv.permute(2, 0, 1, 3, 4).reshape(length, -1).contiguous()  # (P, L * 2 * C)
    config = {
        "base_model_name_or_path": REPOS.get(info.base),
        "encoder_hidden_size": n_head * head_dim,
        "inference_mode": True,
        "num_attention_heads": n_head,
        "num_layers": n_layer,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": length,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "task_type": "CAUSAL_LM",
        "token_dim": n_head * head_dim,
    }
    try:
        others = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if others - {CONFIG_FILE, WEIGHTS_FILE}:
            raise PrefixError(f"{shown(folder)}: not empty; name a new folder")
        tensors = {_TENSOR: flat}
        write_atomically(folder / WEIGHTS_FILE, save(tensors, FORMAT.metadata(info, tensors)))
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        write_atomically(folder / CONFIG_FILE, text.encode())
    except OSError as error:
        raise PrefixError(f"{shown(folder)}: {reason(error)}") from None


def write_past_key_values(path: Path, prefix: PrefixKV, info: PrefixInfo) -> None:
    """Write `past_key_values` as a safetensors file; raises PrefixError as `write_adapter`."""
    check_in_front(info)
    try:
        tensors = past_key_values(prefix.kv)
        write_atomically(path, save(tensors, FORMAT.metadata(info, tensors)))
    except OSError as error:
        raise PrefixError(f"{shown(path)}: {reason(error)}") from None


def past_key_values(kv: Tensor) -> dict[str, Tensor]:
    """kv (L, 2, P, H, D) as `key.N` and `value.N` (1, H, P, D) of each layer N from 0."""
    rows = kv.transpose(2, 3).unsqueeze(2)  # (L, 2, 1, H, P, D)
    return {
        f"{name}.{layer}": rows[layer, i].contiguous()
        for layer in range(len(rows))
        for i, name in enumerate(("key", "value"))
    }


def check_in_front(info: PrefixInfo) -> None:
    """Raises PrefixError for a placement that the other libraries have no word for."""
    if info.placement != "prefix":
        what = f"placed as {info.placement}, and other libraries know prefixes in front alone"
        raise PrefixError(f"the prefix is {what}")


def read_adapter(folder: Path) -> Adapter:
    """Read a prefix that PEFT, or `write_adapter`, saved, to the CPU.

    Raises:
        PrefixError, WeightsError: naming the file, when it is missing, damaged, or something else.
    """
    config = read_json(folder / CONFIG_FILE)
    try:
        sizes = _check_config(config)
    except PrefixError as error:
        raise PrefixError(f"{shown(folder / CONFIG_FILE)}: {error}") from None
    path = folder / WEIGHTS_FILE
    if not path.exists() and (folder / PICKLED_FILE).exists():
        advice = "it is pickled, which is not read; save it with safe_serialization=True"
        raise PrefixError(f"{shown(folder / PICKLED_FILE)}: {advice}")
    length, n_layer, n_head, width = sizes
    with FORMAT.reading(path), safe_open(path, "pt") as file:
        if list(file.keys()) != [_TENSOR]:
            found = printable(", ".join(file.keys()), 100)
            raise PrefixError(f"it must hold {_TENSOR} alone, not {found}")
        header = file.get_slice(_TENSOR)
        shape, expected = tuple(header.get_shape()), (length, n_layer * 2 * width)
        if shape != expected:
            raise PrefixError(f"{_TENSOR} has shape {shape}; {CONFIG_FILE} says {expected}")
        if header.get_dtype() not in _DTYPES:
            raise PrefixError(f"{_TENSOR} has dtype {header.get_dtype()}")
        flat = file.get_tensor(_TENSOR).float().clone()
        FORMAT.check_values(_TENSOR, flat)
        info = FORMAT.parse(file) if FORMAT.key in (file.metadata() or {}) else None
    rows = flat.view(length, n_layer, 2, n_head, width // n_head)  # (P, L, 2, H, D)
    kv = rows.permute(1, 2, 0, 3, 4).contiguous()  # (L, 2, P, H, D)
    return Adapter(PrefixKV.from_tensor(kv), _known_base(config), info)


def _check_config(config: dict) -> tuple[int, ...]:
    """The sizes P, L, H, C that an adapter_config.json says, verified."""
    kind = config.get("peft_type")
    if kind != "PREFIX_TUNING":
        raise PrefixError(f"peft_type is '{printable(str(kind))}', not 'PREFIX_TUNING'")
    if config.get("task_type") not in ("CAUSAL_LM", None):
        shown_type = printable(str(config["task_type"]))
        raise PrefixError(f"task_type is '{shown_type}', not 'CAUSAL_LM'")
    if config.get("num_transformer_submodules") not in (1, None):
        raise PrefixError("it is for a model with an encoder, which GPT-2 is not")
    sizes = tuple(config.get(name) for name in _SIZES)
    for name, size in zip(_SIZES, sizes, strict=True):
        if type(size) is not int or not 0 < size <= _SIZE_LIMIT:
            raise PrefixError(f"{name} must be a positive whole number")
    if sizes[3] % sizes[2]:
        raise PrefixError(f"token_dim {sizes[3]} is not a multiple of {sizes[2]} heads")
    return sizes


def _known_base(config: dict) -> str:
    """The known model that the adapter names, by its hub name or the short one; else ""."""
    named = config.get("base_model_name_or_path")
    return next((name for name, repo in REPOS.items() if named in (name, repo)), "")
