"""The run folder, and the checkpoints a run goes on from: files written whole or not at all.

    run = RunFolder.create(Path("runs/first"))
    save_checkpoint(run.checkpoints, step, tensors, state)
    checkpoint = load_newest(run.checkpoints)

A checkpoint is `step-00001200.safetensors`: tensors, and `state`, a JSON object, in its metadata.
The last two are kept, so that a file damaged by the disk costs one interval at most.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mingpt_prefix.errors import CheckpointError
from mingpt_prefix.files import replace_atomically, write_atomically
from mingpt_prefix.tables import printable

KEEP = 2
_KEY = "mingpt_prefix"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after `step` optimizer steps."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict


class RunFolder:
    """`run.json` (settings and result), `log.jsonl` (a line a step), `checkpoint/`, and the files
    that training makes: `prefix.safetensors` or `model/`, and `loss.png`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints, self.log_file = path / "checkpoint", path / "log.jsonl"
        self.prefix_file, self.model_folder = path / "prefix.safetensors", path / "model"

    @classmethod
    def create(cls, path: Path) -> "RunFolder":
        """Make the folder.

        Raises:
            CheckpointError: when it holds something already, or cannot be written.
        """
        name = printable(str(path), 200)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise CheckpointError(f"{name}: not empty; name a new --out, or --resume it")
            (path / "checkpoint").mkdir()
        except OSError as error:
            raise CheckpointError(f"{name}: {error.strerror or error}") from None
        return cls(path)

    def write_run(self, content: dict) -> None:
        """Make `content` the content of run.json."""
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        self._write(self.path / "run.json", text)

    def log(self, lines: list[dict]) -> None:
        """Append to log.jsonl."""
        try:
            with self.log_file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as error:
            raise CheckpointError(f"{self.log_file}: {error.strerror or error}") from None

    def read_log(self, last_step: int | None = None) -> list[dict]:
        """The lines of log.jsonl up to `last_step`; a line cut off by a crash ends them."""
        lines = []
        try:
            for text in self.log_file.read_text(encoding="utf-8").splitlines():
                line = json.loads(text)
                if last_step is not None and line["step"] > last_step:
                    break
                lines.append(line)
        except (FileNotFoundError, ValueError):
            pass
        return lines

    def cut_log(self, last_step: int) -> None:
        """Drop what log.jsonl says of steps after `last_step`: they will be done again."""
        lines = self.read_log(last_step)
        self._write(self.log_file, "".join(json.dumps(line) + "\n" for line in lines))

    def _write(self, path: Path, text: str) -> None:
        try:
            write_atomically(path, text.encode())
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror or error}") from None


def save_checkpoint(folder: Path, step: int, tensors: dict[str, torch.Tensor], state: dict) -> None:
    """Write the checkpoint of `step` into `folder`, then delete all but the last two.

    Raises:
        CheckpointError: when it cannot be written; the older ones are then as they were.
    """
    metadata = {_KEY: json.dumps({**state, "step": step}, sort_keys=True)}
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path = folder / f"step-{step:08d}.safetensors"
    try:
        replace_atomically(path, lambda part: save_file(held, part, metadata))
        for old in _saved(folder)[:-KEEP]:
            old.unlink()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{printable(str(path), 200)}: cannot be written: {error}") from None


def load_newest(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint in `folder` that is whole; None where none was saved yet.

    Raises:
        CheckpointError: when all are damaged, naming what is wrong.
    """
    name = printable(str(folder), 200)
    wrong = None
    for path in reversed(_saved(folder)):
        try:
            return _load(path)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            wrong = f"{name}/{path.name}: damaged: {printable(str(error), 100)}"
    if wrong is not None:
        raise CheckpointError(wrong)
    return None


def _load(path: Path) -> Checkpoint:
    with safe_open(path, "pt") as file:
        state = json.loads((file.metadata() or {})[_KEY])
        # Copies: what is read is a window on the file, which is deleted while training goes on.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    step = state["step"]
    if not isinstance(step, int) or path.name != f"step-{step:08d}.safetensors":
        raise ValueError("its name does not fit its step")
    return Checkpoint(step, tensors, state)


def _saved(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"))
