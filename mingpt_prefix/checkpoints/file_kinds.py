"""What a file or folder is that was given in the place of another."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mingpt_prefix.errors import listed

SWEEP_FILE = "sweep.json"
_WORDS = {
    "run": "a run's folder; give it to --run or --resume, or its model/ to --model",
    "sweep": "a sweep's folder; give one of its runs to --run",
    "prefix": "a prefix; give it to sample's --prefix or train's --init-prefix",
    "LoRA": "LoRA; give it to sample's --lora",
    "calls": "the calls of a bank; give their folder to --bank",
    "checkpoint": "a checkpoint; give its run's folder to --resume",
    "model": "a model's folder; give it to --model",
    "weights": "a model's weights; give their folder to --model",
}


def instead_of(kind: str, path: Path) -> str | None:
    """What `path` is if it is of another kind than `kind`, one of those above, in words; None for
    what is of none of them, or cannot be read."""
    found = _kind_of(path)
    if found in (None, kind):
        return None
    runs = listed(each.parent.name for each in path.glob("*/run.json")) if found == "sweep" else ""
    return f"this is {_WORDS[found]}{runs and f': {runs}'}"


def _kind_of(path: Path) -> str | None:
    try:
        if path.is_dir():
            found = (("config.json", "model"), ("run.json", "run"), (SWEEP_FILE, "sweep"))
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
