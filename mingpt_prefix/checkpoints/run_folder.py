"""A run's folder: what train.py writes, and how it is found and read again.

run = RunFolder.create(Path("runs/first"))
read_run(run.path)["config"]["mode"]
newest_finished(RUNS)
"""

import contextlib
import itertools
import json
import os
import shlex
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from mingpt_prefix.checkpoints.atomic_write import remove_parts, write_atomically
from mingpt_prefix.checkpoints.file_kinds import instead_of
from mingpt_prefix.config import Mode
from mingpt_prefix.errors import CheckpointError, command, printable, shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

RUNS = Path("runs")
RUN_FILE = "run.json"
_RUN_FILE_LIMIT = 1 << 20


class RunFolder:
    """`run.json` (settings and result), `log.jsonl` (a line per step), `checkpoint/`, and the files
    that training makes: `prefix.safetensors`, `lora.safetensors`, both, or `model/`; `loss.png`;
    and `tensorboard/` with --log tensorboard."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints, self.log_file = path / "checkpoint", path / "log.jsonl"
        self.prefix_file, self.model_folder = path / "prefix.safetensors", path / "model"
        self.lora_file = path / "lora.safetensors"
        self.picture, self.tensorboard = path / "loss.png", path / "tensorboard"

    @classmethod
    def create(cls, path: Path, content: dict) -> "RunFolder":
        """Make the folder, with `content` in its run.json.

        Raises:
            CheckpointError: if it is not empty, or cannot be written.
        """
        name = shown(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise CheckpointError(f"{name}: not empty; name a new --out, or --resume it")
            run = cls(path)
            run.lock()
            run.write_run(content)
            run.checkpoints.mkdir()
        except OSError as error:
            raise CheckpointError(f"{name}: {error.strerror or error}") from None
        return run

    @classmethod
    def reopen(cls, path: Path, step: int) -> "RunFolder":
        """The folder of a run that goes on after `step`; later lines of its log are dropped.

        Raises:
            CheckpointError: if another process trains in it, or it cannot be written.
        """
        run = cls(path)
        try:
            run.lock()
            run.checkpoints.mkdir(exist_ok=True)
            for folder in (run.path, run.checkpoints):
                remove_parts(folder)
            lines = run.read_log(step)
            _write(run.log_file, "".join(json.dumps(line) + "\n" for line in lines))
        except OSError as error:
            raise CheckpointError(f"{shown(path)}: {error.strerror}") from None
        return run

    def lock(self) -> None:
        """Keep other processes from training in the folder while this object lives.

        The system holds the lock, so a killed process leaves none behind. Without locks (Windows,
        some network drives) this does nothing.

        Raises:
            CheckpointError: if another process trains in it.
        """
        if fcntl is None:
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            name = shown(self.path)
            raise CheckpointError(f"{name}: another process is training in it") from None
        except OSError:
            pass

    def write_run(self, content: dict) -> None:
        """Make `content` the content of run.json.

        Raises:
            CheckpointError: if it cannot be written.
        """
        _write(self.path / RUN_FILE, json.dumps(content, indent=2, sort_keys=True) + "\n")

    def log(self, lines: list[dict]) -> None:
        """Append to log.jsonl.

        Raises:
            CheckpointError: if it cannot be written.
        """
        try:
            with self.log_file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())  # before the checkpoint, which counts on them
        except OSError as error:
            raise CheckpointError(f"{self.log_file}: {error.strerror or error}") from None

    def read_log(self, last_step: int | None = None) -> list[dict]:
        """The lines of log.jsonl up to `last_step`; they end at one that a crash cut off."""
        lines = []
        try:
            for text in self.log_file.read_text(encoding="utf-8").splitlines():
                line = json.loads(text)
                if last_step is not None and line["step"] > last_step:
                    break
                lines.append(line)
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            pass
        return lines

    def logged_seconds(self) -> float:
        """How long the logged steps took, by the last line; 0 if that does not say."""
        seconds = [line.get("seconds") for line in self.read_log()[-1:]]
        return next((s for s in seconds if isinstance(s, int | float)), 0.0)


def read_run(folder: Path) -> dict:
    """A run's run.json: its settings under "config", and its "result", None until the run ends.

    Raises:
        CheckpointError: naming the folder, if the file is missing or damaged.
    """
    path = Path(folder) / RUN_FILE
    if not Path(folder).exists():
        raise CheckpointError(f"{shown(folder)}: no such run")
    if not path.is_file() and (other := instead_of("run", Path(folder))):
        raise CheckpointError(f"{shown(folder)}: {other}")
    return read_run_file(path)


def read_run_file(path: Path) -> dict:
    """The same from a run.json that may lie anywhere. Raises like `read_run`."""
    name = shown(path)
    try:
        if not path.is_file():
            raise CheckpointError(f"{name}: no such file; a run's folder has one")
        with path.open("rb") as file:
            data = file.read(_RUN_FILE_LIMIT + 1)
    except OSError as error:
        raise CheckpointError(f"{name}: {error.strerror or error}") from None
    try:
        content = json.loads(data) if len(data) <= _RUN_FILE_LIMIT else None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{name}: not valid JSON") from None
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise CheckpointError(f"{name}: not the settings of a run")
    return content


@dataclass(frozen=True)
class Kept:
    """What a run has left: a prefix, LoRA, both, or a model of its own; its template, or ""; and
    its settings."""

    mode: str
    template: str
    settings: dict
    prefix: Path | None = None
    lora: Path | None = None
    model: Path | None = None

    @property
    def is_prefix(self) -> bool:
        """Whether it is only a prefix: the model is then unchanged, and can take other prefixes."""
        return self.prefix is not None and self.lora is None


def kept_by(folder: Path) -> Kept:
    """What the finished run in `folder` has left.

    Raises:
        CheckpointError: if the run has not ended, or its mode is unknown; and like `read_run`.
    """
    content, run = read_run(folder), RunFolder(folder)
    mode = str(content["config"].get("mode"))
    if content.get("result") is None:
        resume = f"{command('train')} --resume {shlex.quote(shown(folder))}"
        raise CheckpointError(f"{shown(folder)}: the run has not finished; to continue: {resume}")
    if mode not in get_args(Mode):
        raise CheckpointError(f"{shown(folder)}: unknown mode '{printable(mode)}'")
    template = str(content["config"].get("input_template") or "")
    if mode in ("finetune", "pretrain"):
        return Kept(mode, template, content["config"], model=run.model_folder)
    prefix = run.prefix_file if mode != "lora" else None
    lora = run.lora_file if mode != "prefix" else None
    return Kept(mode, template, content["config"], prefix, lora)


def finished_runs(root: Path) -> list[Path]:
    """The folders of finished runs in `root`, newest first; unreadable ones are left out."""
    found = []
    with contextlib.suppress(OSError):
        for folder in root.iterdir():
            with contextlib.suppress(CheckpointError, OSError):
                if read_run(folder).get("result") is not None:
                    found.append(((folder / RUN_FILE).stat().st_mtime_ns, folder))
    return [folder for _, folder in sorted(found, reverse=True)]


def newest_finished(root: Path) -> Path | None:
    """The run in `root` that finished last, or None."""
    return next(iter(finished_runs(root)), None)


def next_folder(stem: str) -> Path:
    """`runs/STEM-1`, or the first free number; made at once, so that no other run takes it."""
    RUNS.mkdir(exist_ok=True)
    for number in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            (folder := RUNS / f"{stem}-{number}").mkdir()
            return folder


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
