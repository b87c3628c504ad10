"""A run's folder: what train.py writes, found again and read with care.

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
    """`run.json` (settings and result), `log.jsonl` (a line a step), `checkpoint/`, and the files
    that training makes: `prefix.safetensors`, `lora.safetensors`, both, or `model/`, and
    `loss.png`; with --log tensorboard `tensorboard/`."""

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
            CheckpointError: when it holds something already, or cannot be written.
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
        """The folder of a run that goes on after `step`: what was logged later is dropped.

        Raises:
            CheckpointError: when another process trains in it, or it cannot be written.
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
        """Keep other processes from training in the folder, for as long as this one lives.

        A lock is the system's: one that is killed leaves none. Without locks (Windows, some network
        drives) nothing is kept.

        Raises:
            CheckpointError: when another process trains in it.
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
            CheckpointError: when it cannot be written.
        """
        _write(self.path / RUN_FILE, json.dumps(content, indent=2, sort_keys=True) + "\n")

    def log(self, lines: list[dict]) -> None:
        """Append to log.jsonl.

        Raises:
            CheckpointError: when it cannot be written.
        """
        try:
            with self.log_file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())  # before the checkpoint, which says that they are there
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
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            pass
        return lines

    def logged_seconds(self) -> float:
        """How long the logged steps took, by the last line; 0 if it does not say."""
        seconds = [line.get("seconds") for line in self.read_log()[-1:]]
        return next((s for s in seconds if isinstance(s, int | float)), 0.0)


def read_run(folder: Path) -> dict:
    """What a run's run.json says: its settings under "config", and "result", None until it ends.

    Raises:
        CheckpointError: naming the folder, when there is none, or it is damaged.
    """
    path = Path(folder) / RUN_FILE
    if not path.is_file() and (other := instead_of("run", Path(folder))):
        raise CheckpointError(f"{shown(folder)}: {other}")
    return read_run_file(path)


def read_run_file(path: Path) -> dict:
    """The same from a run.json, which may lie elsewhere."""
    name = shown(path)
    try:
        if not path.is_file():
            raise CheckpointError(f"{name}: no such file; a run's folder has one")
        with path.open("rb") as file:
            data = file.read(_RUN_FILE_LIMIT + 1)
        content = json.loads(data) if len(data) <= _RUN_FILE_LIMIT else None
    except OSError as error:
        raise CheckpointError(f"{name}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{name}: not valid JSON") from None
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise CheckpointError(f"{name}: not the settings of a run")
    return content


@dataclass(frozen=True)
class Kept:
    """What a run has left: a prefix, LoRA, both, or a model of its own; its template, or ""; and
    its other settings."""

    mode: str
    template: str
    settings: dict
    prefix: Path | None = None
    lora: Path | None = None
    model: Path | None = None

    @property
    def is_prefix(self) -> bool:
        """Whether a prefix is all: then the model is as it was, for other prefixes too."""
        return self.prefix is not None and self.lora is None


def kept_by(folder: Path) -> Kept:
    """What the finished run in `folder` has left.

    Raises:
        CheckpointError: for a run that has not ended, or of an unknown mode; and as `read_run`.
    """
    content, run = read_run(folder), RunFolder(folder)
    mode = str(content["config"].get("mode"))
    if content.get("result") is None:
        resume = f"{command('train')} --resume {shlex.quote(shown(folder))}"
        raise CheckpointError(f"{shown(folder)}: the run has not ended; to go on: {resume}")
    if mode not in get_args(Mode):
        raise CheckpointError(f"{shown(folder)}: unknown mode '{printable(mode)}'")
    template = str(content["config"].get("input_template") or "")
    if mode in ("finetune", "pretrain"):
        return Kept(mode, template, content["config"], model=run.model_folder)
    prefix = run.prefix_file if mode != "lora" else None
    lora = run.lora_file if mode != "prefix" else None
    return Kept(mode, template, content["config"], prefix, lora)


def check_origin(folder: Path, origin: dict[str, str]) -> None:
    """Compare digests of what a run began with, by name, with those that its run.json records.

    Raises:
        CheckpointError: naming what is not the same; and as `read_run`.
    """
    recorded = read_run(folder)
    for name, digest in origin.items():
        if recorded.get(name, digest) != digest:  # the first format recorded the data alone
            where, what = shown(folder), name.replace("_", " ")
            raise CheckpointError(f"{where}: the {what} is not what the run began with")


def finished_runs(root: Path) -> list[Path]:
    """The folders in `root` whose run has ended, newest first; unreadable ones are left out."""
    found = []
    try:
        for folder in root.iterdir():
            try:
                if read_run(folder).get("result") is not None:
                    found.append(((folder / RUN_FILE).stat().st_mtime_ns, folder))
            except (CheckpointError, OSError):
                continue
    except OSError:
        pass
    return [folder for _, folder in sorted(found, reverse=True)]


def newest_finished(root: Path) -> Path | None:
    """The run in `root` that ended last, or None."""
    return next(iter(finished_runs(root)), None)


def next_folder(stem: str) -> Path:
    """`runs/STEM-1`, or the first number that is free; made at once, lest another run takes it."""
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
