"""A model's folder as transformers saves it: config.json and safetensors, checked as they are read.

Tensors have GPT-2's own names, with or without `transformer.` in front. Nothing pickled is read.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mingpt_prefix.config import ModelConfig
from mingpt_prefix.errors import ConfigError, WeightsError, listed, printable, reason, shown

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FILES = ("vocab.json", TOKENIZER_FILE)
_TOKENIZER_KEY = "mingpt_prefix_tokenizer"
_STORED_DTYPES = ("F16", "BF16", "F32", "F64")
# Masks that old versions of transformers saved among the weights.
_MASK = re.compile(r"h\.\d+\.attn\.(masked_)?bias")
# No GPT-2 comes near these: a damaged config.json must not ask for all memory.
_SIZE_LIMITS = {"n_layer": 1 << 10} | dict.fromkeys(
    ("n_head", "n_embd", "vocab_size", "n_positions"), 1 << 20
)
_JSON_LIMIT = 1 << 24
# SHA-256 over the tokens of GPT-2's tokenizer, but for the end token, as its files spell them.
_GPT2_TOKENS = "4c9d30e24aa2b6a802cbe721e72c4ea9f4ac076781eafb0686f6ae4019f7f130"
# Without files of a tokenizer, a vocabulary up to here is GPT-2's, padded to a multiple of 1,024.
_MOST_PADDED = 51_200
# Other names that transformers has for the keys of sizes.
_ALIASES = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "n_positions": "max_position_embeddings",
}
# Other names of the activation in _FIXED: the same up to rounding.
_TANH_GELUS = ("gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate")
# What this model computes, in the keys of config.json; these are also the defaults of absent keys.
_FIXED = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or the shards that its index names.

    Raises:
        WeightsError: if there are none, or the index is damaged.
    """
    index = folder / INDEX_FILE
    if (folder / WEIGHTS_FILE).exists():
        return [folder / WEIGHTS_FILE]
    if not index.exists():
        pickled = (folder / "pytorch_model.bin").exists()
        advice = "; pickled weights are not read, save them as safetensors" if pickled else ""
        raise WeightsError(f"{shown(folder)}: no {WEIGHTS_FILE} in it{advice}")
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise WeightsError(f"{shown(index)}: no weight_map in it")
    for shard in shards.values():
        # A plain name: no path out of the folder is taken from a file.
        if not isinstance(shard, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", shard):
            raise WeightsError(f"{shown(index)}: '{printable(str(shard))}' is no file name")
    return [folder / shard for shard in sorted(set(shards.values()))]


def read_tensors(files: list[Path], shapes: Mapping[str, tuple]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of these shapes with their names, sorted, as views of the files.

    Raises:
        WeightsError: naming the file, if it is missing or damaged, or if a tensor is missing,
            unexpected, of another shape, not floating-point, or not finite.
    """
    where = files[0] if len(files) == 1 else files[0].parent
    with ExitStack() as stack:
        opened = [stack.enter_context(_open(file)) for file in files]
        try:
            stored = _stored_tensors(opened)
            _check_headers(stored, shapes)
            for name in sorted(shapes):
                tensor = stored[name][:]
                if not tensor.isfinite().all():
                    raise WeightsError(f"{name} holds NaN or infinite values")
                if name == "wte.weight":
                    _check_head(stored, tensor)
                yield name, tensor
        except WeightsError as error:
            raise WeightsError(f"{shown(where)}: {error}") from None


def _open(file: Path) -> safe_open:
    try:
        if not file.is_file():
            raise WeightsError(f"{shown(file)}: no such file")
        return safe_open(file, "pt")
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{shown(file)}: {reason(error)}") from None


def _stored_tensors(files: Iterable[safe_open]) -> dict[str, Any]:
    """safetensors' slice of every tensor by name, masks left out: a header until it is indexed."""
    stored: dict[str, Any] = {}
    for file in files:
        for key in file.keys():
            name = key.removeprefix("transformer.")
            if name in stored:
                raise WeightsError(f"two tensors '{printable(name)}'")
            if not _MASK.fullmatch(name):
                stored[name] = file.get_slice(key)
    return stored


def _check_headers(stored: Mapping[str, Any], shapes: Mapping[str, tuple]) -> None:
    """Names, shapes and dtypes, from the files' headers only."""
    if missing := shapes.keys() - stored.keys():
        raise WeightsError(f"missing {listed(missing)}")
    if unexpected := stored.keys() - shapes.keys() - {"lm_head.weight"}:
        raise WeightsError(f"unexpected {listed(unexpected)}")
    for name, header in stored.items():
        shape, kind = tuple(header.get_shape()), header.get_dtype()
        expected = shapes.get(name, shapes["wte.weight"])
        if shape != expected:
            raise WeightsError(f"{name} has shape {shape}, where {expected} is expected")
        if kind not in _STORED_DTYPES:
            raise WeightsError(f"{name} has dtype {kind}; read are {', '.join(_STORED_DTYPES)}")


def _check_head(stored: Mapping[str, Any], wte: Tensor) -> None:
    if "lm_head.weight" in stored and not torch.equal(stored["lm_head.weight"][:], wte):
        raise WeightsError("lm_head.weight is not wte.weight: the head is not tied")


def read_config(path: Path) -> ModelConfig:
    """The shape that a config.json gives.

    Raises:
        WeightsError: naming the key, if it is damaged or asks for what this model does not compute.
    """
    raw = read_json(path)
    for name in _SIZE_LIMITS:
        raw.setdefault(name, raw.get(_ALIASES.get(name, ""), getattr(ModelConfig, name)))
    if raw.get("activation_function") in _TANH_GELUS:
        raw["activation_function"] = _FIXED["activation_function"]
    try:
        if raw.get("model_type") != "gpt2":
            found = _value(raw.get("model_type"))
            raise ConfigError(f"GPT-2 only: model_type is {found}, not 'gpt2'")
        for name, expected in _FIXED.items():
            if raw.get(name, expected) != expected:
                raise ConfigError(f"{name} is {_value(raw[name])}; only {expected!r} is supported")
        for name, limit in _SIZE_LIMITS.items():
            if type(raw[name]) is not int or not 0 < raw[name] <= limit:
                raise ConfigError(
                    f"{name} must be a whole number from 1 to {limit}, not {_value(raw[name])}"
                )
        if raw.get("n_inner") not in (None, 4 * raw["n_embd"]):
            raise ConfigError(f"n_inner is {_value(raw['n_inner'])}; only 4 * n_embd is supported")
        epsilon = raw.get("layer_norm_epsilon", 1e-5)
        if type(epsilon) not in (int, float) or not 0 < epsilon < 1:
            raise ConfigError(f"layer_norm_epsilon must lie in (0, 1), not {_value(epsilon)}")
        beside = None if _TOKENIZER_KEY in raw else _tokenizer_beside(path, raw["vocab_size"])
        tokenizer = raw.get(_TOKENIZER_KEY, beside)
        if tokenizer is not None and not isinstance(tokenizer, str):
            raise ConfigError(f"{_TOKENIZER_KEY} must be a name, not {_value(tokenizer)}")
        return ModelConfig(
            **{name: raw[name] for name in _SIZE_LIMITS},
            layer_norm_epsilon=epsilon,
            eos_token_id=_end_token(raw, tokenizer),
            tokenizer=tokenizer,
        )
    except ConfigError as error:
        raise WeightsError(f"{shown(path)}: {error}") from None


def _end_token(raw: dict, tokenizer: str | None) -> int | None:
    """The id that ends a text; without one, that of the tokenizer, if it is known."""
    eos = raw.get("eos_token_id", ModelConfig.eos_token_id)
    if isinstance(eos, list) and len(eos) == 1:
        eos = eos[0]
    # transformers' default stays beside a vocabulary that ends before it.
    is_none = eos is None or (type(eos) is int and not 0 <= eos < raw["vocab_size"])
    if is_none and tokenizer in (None, "gpt2"):
        return ModelConfig.eos_token_id if tokenizer else None
    if type(eos) is not int:
        raise ConfigError(f"eos_token_id must be a whole number, not {_value(eos)}")
    return eos


def _tokenizer_beside(path: Path, vocab_size: int) -> str | None:
    """The tokenizer of a config.json that names none: GPT-2's, or None for one not known here."""
    if vocab_size < ModelConfig.vocab_size:
        return None
    files = [file for name in TOKENIZER_FILES if (file := path.with_name(name)).exists()]
    if not files:
        return "gpt2" if vocab_size <= _MOST_PADDED else None
    words = read_json(files[0])
    if files[0].name == TOKENIZER_FILE and isinstance(words.get("model"), dict):
        words = words["model"].get("vocab")
    if not isinstance(words, dict) or not all(type(number) is int for number in words.values()):
        return None
    tokens = sorted((number, token) for token, number in words.items())
    text = json.dumps(tokens[: ModelConfig.eos_token_id])
    return "gpt2" if hashlib.sha256(text.encode()).hexdigest() == _GPT2_TOKENS else None


def config_json(config: ModelConfig) -> dict:
    """The config.json of a model of this shape; transformers reads it too."""
    return {name: getattr(config, name) for name in _SIZE_LIMITS} | {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **_FIXED,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "bos_token_id": config.eos_token_id,
        "eos_token_id": config.eos_token_id,
        _TOKENIZER_KEY: config.tokenizer,
    }


def read_json(path: Path) -> dict:
    """A JSON object from a file; raises WeightsError, naming the file, if there is none."""
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise WeightsError(f"{shown(path)}: too large to be what its name says")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise WeightsError(f"{shown(path)}: {reason(error)}") from None
    except (ValueError, RecursionError):
        raise WeightsError(f"{shown(path)}: not valid JSON") from None
    if not isinstance(value, dict):
        raise WeightsError(f"{shown(path)}: a JSON object is expected")
    return value


def _value(value: object) -> str:
    return printable(repr(value))
