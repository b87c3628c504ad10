"""The adapters that a run trains, and the rows' initial values: noise, words, examples, a file.

encoder = make_encoder(config, model, train_set)
hidden = model(tokens, positions, layout, encoder())
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mingpt_prefix.adaptation import Adapters
from mingpt_prefix.adapters.prefix_file import read_fitting, rows_digest
from mingpt_prefix.batch import Encoded, epoch_order
from mingpt_prefix.config import ModelConfig, TrainConfig
from mingpt_prefix.data.tokenizer import tokenizer_of
from mingpt_prefix.errors import ConfigError, PrefixError, shown
from mingpt_prefix.lora import Lora
from mingpt_prefix.model import GPT2
from mingpt_prefix.prefix import PrefixEncoder, VirtualTokens, check_length, rows_of


def make_adapters(
    config: TrainConfig, model: GPT2, train_set: Sequence[Encoded] = ()
) -> Adapters | None:
    """The adapters of a run, on the model's device; None if it trains the model itself.

    Raises:
        ConfigError, PrefixError: like `make_encoder` and `Lora`.
    """
    prefix = make_encoder(config, model, train_set) if config.has_prefix else None
    lora = None
    if config.has_lora:
        settings = (config.lora_rank, config.lora_alpha, config.lora_targets, config.lora_dropout)
        lora = Lora(model.config, *settings, seed=config.seed)
    return Adapters(prefix, lora).to(model.device) if config.is_frozen else None


def make_encoder(config: TrainConfig, model: GPT2, train_set: Sequence[Encoded] = ()) -> nn.Module:
    """The module that prefix mode trains: called without arguments, it returns P rows (PrefixKV).

    `config.init` draws its examples from `train_set`.

    Raises:
        ConfigError: if settings exclude each other, or the length is impossible.
        PrefixError: if `config.init_prefix` is damaged, of another model, or has changed.
    """
    length = config.prefix_length
    check_length(length, model.config)
    ids = _first_ids(config, model, train_set)
    if config.depth == "embedding":
        if not config.reparam or config.prefix_dropout:
            raise ConfigError("depth embedding goes with neither no-reparam nor prefix-dropout")
        return VirtualTokens(model, length, config.seed, ids)
    start = _rows_of_file(config, model) if config.init_prefix else None
    if ids:
        tokens = torch.tensor(ids, device=model.device)
        with torch.no_grad():
            positions = torch.arange(length, device=model.device)
            start = rows_of(model, model.eval().embed(tokens, positions)).float()
    return PrefixEncoder(
        model.config,
        length,
        config.mid_dim,
        config.reparam,
        config.seed,
        config.init_scale,
        config.prefix_dropout,
        start,
    )


def _rows_of_file(config: TrainConfig, model: GPT2) -> Tensor:
    """The rows (L, 2, P, H, D) of the prefix file that the run starts from."""
    kv, _ = read_fitting(Path(config.init_prefix), model)
    if rows_digest(kv) != config.init_digest:
        name = shown(config.init_prefix)
        raise PrefixError(f"{name}: the file is not what the run began with")
    return kv.kv.to(model.device)


def _first_ids(config: TrainConfig, model: GPT2, train_set: Sequence[Encoded]) -> list[int]:
    """The P tokens whose keys and values the rows start as; none if they start as noise."""
    length = config.prefix_length
    if config.init == "examples":
        if config.init_text:
            raise ConfigError("init-text and init examples exclude each other")
        ids: list[int] = []
        order = epoch_order(len(train_set), config.seed, 0).tolist()
        while len(ids) < length:
            # Prepended, so that the first example is the one that is cut.
            ids = [*train_set[order.pop()].ids.tolist(), *ids]
            order = order or epoch_order(len(train_set), config.seed, 0).tolist()
        return ids[-length:]
    ids = text_tokens(config.init_text, model.config) if config.init_text else []
    return (ids * -(-length // len(ids)))[:length] if ids else []


def text_tokens(text: str, shape: ModelConfig) -> list[int]:
    """The ids of `text` by the model's tokenizer.

    Raises:
        ConfigError: if there are none, or the tokenizer is unknown.
    """
    ids = tokenizer_of(shape).encode(text)
    if text and not ids:
        raise ConfigError("init-text: no words in it")
    return ids
