"""Resuming a run: what a checkpoint holds of it, and how it is found and read again.

save_checkpoint(run.checkpoints, trainer.step, *run_state(trainer))
run, changed = resume_run(folder, began_with, trainer)
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mingpt_prefix.accel.distributed import ALONE, World
from mingpt_prefix.accel.environment import changes, surroundings
from mingpt_prefix.accel.fsdp import cut_like, gathered
from mingpt_prefix.checkpoints.checkpoint import Checkpoint, load_newest
from mingpt_prefix.checkpoints.run_folder import RunFolder, read_run
from mingpt_prefix.config import TrainConfig, to_json
from mingpt_prefix.errors import CheckpointError, shown
from mingpt_prefix.trainer import Trainer

Optimizers = list[torch.optim.Optimizer]


def config_from_json(saved: object) -> TrainConfig:
    """A `TrainConfig` as run.json holds it; a setting that came later has its default.

    Raises:
        CheckpointError: when settings are unknown, of the wrong type, or missing without a default.
    """
    if not isinstance(saved, dict):
        raise CheckpointError("run.json: no settings in it")
    # A setting that is gone, as runs have it that did not use it.
    saved = {name: value for name, value in saved.items() if (name, value) != ("gated", False)}
    try:
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
        config = TrainConfig(**values)
        read = to_json(config)
    except TypeError as error:
        raise CheckpointError(f"run.json: the settings are not a run's: {error}") from None
    if changed := sorted(name for name in saved if read[name] != saved[name]):
        raise CheckpointError(f"run.json: not a run's setting: {', '.join(changed)}")
    return config


def trained_state(trainable: nn.Module, optimizers: Optimizers) -> dict[str, Tensor]:
    """All that `load_trained_state` needs, by names."""
    tensors = {f"trained.{name}": p for name, p in trainable.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, slots in optimizer.state_dict()["state"].items():
            names = {key: f"optimizer.{number}.{index}.{key}" for key in slots}
            tensors.update({names[key]: value for key, value in slots.items()})
    return tensors


def load_trained_state(
    trainable: nn.Module, optimizers: Optimizers, tensors: dict[str, Tensor]
) -> None:
    """Raises CheckpointError where `tensors` are those of another model or other optimizers."""
    slots: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    try:
        own = dict(trainable.named_parameters())
        for name, tensor in tensors.items():
            kind, rest = name.split(".", 1)
            if kind == "trained":
                into = own.pop(rest)
                if tensor.shape != into.shape:
                    raise ValueError(f"{name} has shape {tuple(tensor.shape)}")
                into.data.copy_(cut_like(tensor, into))
            else:
                number, index, key = rest.split(".")
                groups = optimizers[int(number)].param_groups
                owner = [p for group in groups for p in group["params"]][int(index)]
                slots[int(number)].setdefault(int(index), {})[key] = cut_like(tensor, owner)
        if own:
            raise KeyError(next(iter(own)))
        for optimizer, state in zip(optimizers, slots, strict=True):
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (LookupError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint is of another run: {error}") from None


def run_state(trainer: Trainer, world: World = ALONE) -> tuple[dict[str, Tensor], dict]:
    """All that `restore` needs: tensors, and a JSON object; with shards all ranks must call it."""
    tensors = gathered(trained_state(trainer.trainable, trainer.stepper.optimizers), world)
    machine = surroundings(trainer.model.device, world.size)
    state = {"best_loss": trainer.best_loss, "best_step": trainer.best_step, "machine": machine}
    return tensors, state


def restore(trainer: Trainer, checkpoint: Checkpoint, world: World = ALONE) -> list[str]:
    """Bring `trainer` to `checkpoint`; returns what of the machine is not as it was saved.

    If that is nothing, the run ends at the bytes of one that was never interrupted.

    Raises:
        CheckpointError: when it is not of this run's shape.
    """
    load_trained_state(trainer.trainable, trainer.stepper.optimizers, checkpoint.tensors)
    try:
        best_loss = float(checkpoint.state["best_loss"])
        best_step = int(checkpoint.state["best_step"])
    except (LookupError, ValueError) as error:
        raise CheckpointError(f"the checkpoint is of another run: {error}") from None
    trainer.start_from(checkpoint.step, best_loss, best_step)
    now = surroundings(trainer.model.device, world.size)
    return changes(checkpoint.state.get("machine"), now)


def check_origin(folder: Path, origin: Mapping[str, str]) -> None:
    """Check that a run began with what has these digests, by name, as its run.json records them.

    Raises:
        CheckpointError: naming what differs; and like `read_run`.
    """
    recorded = read_run(folder)
    for name, digest in origin.items():
        if recorded.get(name, digest) != digest:  # the first format recorded only the data
            where, what = shown(folder), name.replace("_", " ")
            raise CheckpointError(f"{where}: the {what} is not what the run began with")


def resume_run(
    folder: Path, began_with: Mapping[str, str], trainer: Trainer, world: World = ALONE
) -> tuple[RunFolder | None, list[str]]:
    """The run in `folder`, with `trainer` where it left off, and what of the machine has changed.

    On every rank but the first, which alone writes, the run is None.

    Raises:
        CheckpointError: when it is not of this run, or the run did not begin with `began_with`.
    """
    changed = []
    check_origin(folder, began_with)
    if checkpoint := load_newest(RunFolder(folder).checkpoints):
        changed = restore(trainer, checkpoint, world)
    world.wait()  # until all have read it
    return RunFolder.reopen(folder, trainer.step) if world.is_main else None, changed
