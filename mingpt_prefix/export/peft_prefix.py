"""A prefix in the forms of other libraries: PEFT's adapter folder, transformers' past_key_values.

    write_adapter(folder, kv, info)      # adapter_config.json, adapter_model.safetensors
    adapter = read_adapter(folder)
    past_key_values(kv)                  # {"key.0": (1, H, P, D), "value.0": ..., "key.1": ...}

PEFT keeps a prefix as `prompt_embeddings` (P, L * 2 * C), with its MLP folded in if there was one
(`prefix_projection`), and counts positions from P on, as we do for a prefix in front. Neither
library is imported.
"""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from mingpt_prefix.adapters.prefix_file import FORMAT, PrefixInfo
from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.checkpoints.atomic_write import write_atomically
from mingpt_prefix.errors import PrefixError, printable
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

PEFT_TYPE = "PREFIX_TUNING"
_TENSOR = "prompt_embeddings"
_SIZES = ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim")


@dataclass(frozen=True)
class PrefixAdapter:
    """What an adapter folder holds: the rows, the known model that it names or "", and, in a folder
    that `write_adapter` wrote, what was saved with them."""

    prefix: PrefixKV
    base: str
    info: PrefixInfo | None


def write_adapter(
    folder: Path, prefix: PrefixKV, info: PrefixInfo, base: str | None = None
) -> None:
    """Write a folder that `PeftModel.from_pretrained` loads; `base` is its model's name or path.

    Equal prefixes give equal bytes.

    Raises:
        PrefixError: for an infix, which PEFT does not have, and when it cannot be written.
    """
    check_in_front(info)
    kv = prefix.kv
    n_layer, _, length, n_head, head_dim = kv.shape
    flat = kv.permute(2, 0, 1, 3, 4).reshape(length, -1).contiguous()  # (P, L * 2 * C)
    config = {
        "encoder_hidden_size": n_head * head_dim,
        "num_attention_heads": n_head,
        "num_layers": n_layer,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": length,
        "peft_type": PEFT_TYPE,
        "prefix_projection": False,
        "token_dim": n_head * head_dim,
    }
    write_folder(folder, config, {_TENSOR: flat}, info, FORMAT, base)


def write_past_key_values(path: Path, prefix: PrefixKV, info: PrefixInfo) -> None:
    """Write `past_key_values` as a safetensors file; raises PrefixError as `write_adapter`."""
    check_in_front(info)
    tensors = past_key_values(prefix.kv)
    with FORMAT.naming(path):
        write_atomically(path, save(tensors, FORMAT.metadata(info, tensors)))


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


def read_adapter(folder: Path) -> PrefixAdapter:
    """Read a prefix that PEFT, or `write_adapter`, saved, to the CPU.

    Raises:
        PrefixError, WeightsError: naming the file, when it is missing, damaged, or something else.
    """
    config = read_config(folder)
    with FORMAT.naming(folder / CONFIG_FILE):
        length, n_layer, n_head, width = _check_config(config)
    with open_weights(folder, FORMAT) as file:
        if list(file.keys()) != [_TENSOR]:
            found = printable(", ".join(file.keys()), 100)
            raise PrefixError(f"it must hold {_TENSOR} alone, not {found}")
        flat = read_values(file, _TENSOR, (length, n_layer * 2 * width), FORMAT)
        info = own_info(file, FORMAT)
    rows = flat.view(length, n_layer, 2, n_head, width // n_head)  # (P, L, 2, H, D)
    kv = rows.permute(1, 2, 0, 3, 4).contiguous()  # (L, 2, P, H, D)
    return PrefixAdapter(PrefixKV.from_tensor(kv), named_base(config), info)


def _check_config(config: dict) -> tuple[int, ...]:
    """The sizes P, L, H, C that an adapter_config.json says, verified."""
    check_type(config, PEFT_TYPE, FORMAT)
    if config.get("num_transformer_submodules") not in (1, None):
        raise PrefixError("it is for a model with an encoder, which GPT-2 is not")
    sizes = sizes_of(config, _SIZES, FORMAT)
    if sizes[3] % sizes[2]:
        raise PrefixError(f"token_dim {sizes[3]} is not a multiple of {sizes[2]} heads")
    return sizes
