"""What a file or folder is that was given in the place of another."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

_WORDS = {
    "run": "a run's folder: --run and --resume take it, and --model its model/",
    "prefix": "a prefix: sample.py takes it by --prefix, train.py by --init-prefix",
    "LoRA": "LoRA: sample.py takes it by --lora",
    "calls": "the calls of a bank: --bank takes their folder",
    "checkpoint": "a checkpoint: --resume takes its run's folder, and goes on from it",
    "model": "a model's folder: --model takes it",
    "weights": "a model's weights: --model takes their folder",
}


def instead_of(kind: str, path: Path) -> str | None:
    """What `path` is if it is of another kind than `kind`, one of those above, in words; None for
    what is of none of them, or cannot be read."""
    found = _kind_of(path)
    return None if found in (None, kind) else f"this is {_WORDS[found]}"


def _kind_of(path: Path) -> str | None:
    try:
        if path.is_dir():
            found = (("config.json", "model"), ("run.json", "run"))
            return next((kind for name, kind in found if (path / name).is_file()), None)
        if not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            return _kind_within(file.metadata() or {}, file.keys())
    except (OSError, ValueError, RecursionError, SafetensorError):
        return None


def _kind_within(metadata: dict[str, str], names: list[str]) -> str | None:
    if "mingpt_lora" in metadata:
        return "LoRA"
    if "mingpt_prefix" not in metadata:
        is_model = any(name.removeprefix("transformer.") == "wte.weight" for name in names)
        return "weights" if is_model else None
    fields = json.loads(metadata["mingpt_prefix"])
    kinds = {"length": "prefix", "names": "calls", "step": "checkpoint"}
    held = fields if isinstance(fields, dict) else ()
    return next((kind for field, kind in kinds.items() if field in held), None)
