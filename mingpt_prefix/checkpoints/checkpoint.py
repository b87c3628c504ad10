"""The checkpoints a run resumes from: each one file, written whole or not at all.

    save_checkpoint(folder, step, tensors, state)
    checkpoint = load_newest(folder)

A checkpoint is `step-00001200.safetensors`: tensors, and in its metadata `state`, a JSON object,
and a SHA-256 over both. The last two are kept, so that a file damaged by the disk costs one
interval at most.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mingpt_prefix.checkpoints.atomic_write import replace_atomically
from mingpt_prefix.checkpoints.digest import UNREADABLE, digest_of
from mingpt_prefix.errors import CheckpointError, printable, shown

SAVE_EVERY_S = 300.0  # at the latest
KEEP = 2
_KEY, _DIGEST = "mingpt_prefix", "sha256"
# What the first format's state held; it had no SHA-256.
_FIRST = {"best_loss", "best_step", "step"}


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after `step` optimizer steps."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict


def save_checkpoint(folder: Path, step: int, tensors: dict[str, torch.Tensor], state: dict) -> None:
    """Write the checkpoint of `step` into `folder`, then delete all but the last two.

    Raises:
        CheckpointError: when it cannot be written; the older ones are then as they were.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    state = {**state, "step": step}
    content = {**state, _DIGEST: digest_of(held, state)}
    metadata = {_KEY: json.dumps(content, sort_keys=True)}
    path = folder / _name(step)
    try:
        replace_atomically(path, lambda part: save_file(held, part, metadata))
        for old in _saved(folder)[:-KEEP]:
            old.unlink()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{shown(path)}: cannot be written: {error}") from None


def load_newest(folder: Path, last_step: int | None = None) -> Checkpoint | None:
    """Read the newest checkpoint in `folder` that is whole; None if none was saved yet.

    `last_step`: of those after later steps none is read.

    Raises:
        CheckpointError: when all are damaged, naming what is wrong.
    """
    name = shown(folder)
    wrong = None
    for path in reversed(_saved(folder)):
        if last_step is not None and path.name > _name(last_step):
            continue
        try:
            return _load(path)
        except UNREADABLE as error:
            wrong = f"{name}/{path.name}: damaged: {printable(str(error), 100)}"
    if wrong is not None:
        raise CheckpointError(wrong)
    return None


def drop_later(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps than `step`, which a run that goes on from it makes
    anew."""
    for path in _saved(folder):
        if path.name > _name(step):
            path.unlink()


def _load(path: Path) -> Checkpoint:
    with safe_open(path, "pt") as file:
        state = json.loads((file.metadata() or {})[_KEY])
        # Copies: what is read is a window on the file, which is deleted while training goes on.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    step, digest = state["step"], state.pop(_DIGEST, None)
    if digest != digest_of(tensors, state) and not (digest is None and state.keys() == _FIRST):
        raise ValueError("its SHA-256 differs")
    if not isinstance(step, int) or path.name != _name(step):
        raise ValueError("its name does not fit its step")
    return Checkpoint(step, tensors, state)


def _name(step: int) -> str:
    return f"step-{step:08d}.safetensors"


def _saved(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"))
