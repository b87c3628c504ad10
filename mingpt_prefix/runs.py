"""Run folders as they are found again: `run.json` read with care, and the newest finished run.

read_run(Path("runs/prefix-tiny-1"))["config"]["mode"]
newest_finished(Path("runs"))
"""

import json
from pathlib import Path

from mingpt_prefix.errors import CheckpointError
from mingpt_prefix.tables import printable

RUN_FILE = "run.json"
_RUN_FILE_LIMIT = 1 << 20


def read_run(folder: Path) -> dict:
    """What a run's run.json says: its settings under "config", and "result", None until it ends.

    Raises:
        CheckpointError: naming the folder, when there is none, or it is damaged.
    """
    path = Path(folder) / RUN_FILE
    name = printable(str(path), 200)
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


def finished_runs(root: Path) -> list[Path]:
    """The folders in `root` whose run has ended, newest first; those that cannot be read are left
    out."""
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
