"""The settings a mode and model are trained with where nothing else is said.

Those of Li & Liang (2021) for E2E, with 5 prefix rows; LoRA has the learning rate, the warm-up and
the dropout of Hu et al. (2021, table 11), at the rank and scale that PEFT's users take. `tiny` has
its own.
"""

from collections.abc import Sequence
from dataclasses import fields

from mingpt_prefix.cli.flags import in_words
from mingpt_prefix.config import TARGETS, Mode, TrainConfig

_POSTER = dict(epochs=5, batch_size=10, micro_batch_size=10)
_PRETRAIN = dict(
    epochs=1,
    batch_size=16,
    micro_batch_size=16,
    optimizer="muon",
    weight_decay=0.1,
    betas=(0.9, 0.95),
    warmup=0.02,
    evals=10,
)
_LORA = dict(lora_rank=8, lora_alpha=16.0, lora_targets=("attn.c_attn",))
RECIPES: dict[Mode, dict] = {
    "prefix": dict(_POSTER, lr=8e-5, prefix_length=5),
    "lora": dict(_POSTER, **_LORA, lr=2e-4, warmup=0.02, lora_dropout=0.1),
    "prefix+lora": dict(_POSTER, **_LORA, lr=8e-5, prefix_length=5, lora_lr=2e-4, lora_dropout=0.1),
    "finetune": dict(_POSTER, lr=5e-5, dropout=0.1),
    "pretrain": dict(_PRETRAIN, lr=6e-4),
}
# Small models want a longer prefix, and many steps: two epochs take two cores some three minutes.
# Rows that begin as examples and are trained directly, at a high rate, get furthest in them.
_TINY = dict(epochs=2, batch_size=8, micro_batch_size=8, evals=2)
_TINY_PREFIX = dict(
    _TINY,
    lr=0.1,
    warmup=0.05,
    prefix_length=100,
    init="examples",
    reparam=False,
    optimizer="muon",
)
# One epoch, one seed: LoRA of all four weights gets to a dev loss of 0.41 at 5e-3 (0.43 at 1e-2),
# of c_attn alone to 0.70 at 1e-2 (0.94, 0.73 and 0.75 at 2e-3, 5e-3 and 2e-2); beside a prefix, of
# all four, to 0.41 at 5e-3, of c_attn alone to 0.49 (0.51, 0.52 and 0.57 at 2e-3, 1e-2 and 2e-2).
_TINY_LORA = dict(_LORA, lora_targets=TARGETS)
TINY_RECIPES: dict[Mode, dict] = {
    "prefix": _TINY_PREFIX,
    "lora": dict(_TINY, **_TINY_LORA, lr=5e-3, warmup=0.05),
    "prefix+lora": dict(_TINY_PREFIX, **_TINY_LORA, lora_lr=5e-3),
    "finetune": dict(_TINY, lr=2e-4),
    "pretrain": dict(_PRETRAIN, lr=3e-3, batch_size=8, micro_batch_size=8),
}
# The paper's way, or virtual tokens.
_TINY_BY_MLP = dict(lr=1.7e-3, reparam=True, optimizer="adamw")


def recipe(mode: Mode, tiny: bool, **overrides) -> dict:
    """The recipe's settings for `mode`; those of `overrides` that are not None replace them."""
    chosen = dict((TINY_RECIPES if tiny else RECIPES)[mode])
    if tiny and mode in ("prefix", "prefix+lora"):
        if overrides.get("reparam") or overrides.get("depth") == "embedding":
            chosen.update(_TINY_BY_MLP)
    chosen.update({name: value for name, value in overrides.items() if value is not None})
    if overrides.get("micro_batch_size") is None:
        chosen["micro_batch_size"] = min(chosen["micro_batch_size"], chosen["batch_size"])
    return chosen


def default_in_words(name: str, modes: Sequence[Mode]) -> str:
    """What the setting `name` is in these modes if no flag says otherwise: "gpt2 5, tiny 100"."""
    fallback = {field.name: field.default for field in fields(TrainConfig)}[name]
    pairs: dict[tuple[str, str], list[str]] = {}
    for mode in modes:
        own, tiny_own = (in_words(r[mode].get(name, fallback)) for r in (RECIPES, TINY_RECIPES))
        pairs.setdefault((own, tiny_own), []).append(mode)
    parts = []
    for (own, small), of in pairs.items():
        named = f"{', '.join(of)}: " if parts else ""  # the first is the usual one
        parts.append(named + (own if own == small else f"gpt2 {own}, tiny {small}"))
    return "; ".join(parts)
