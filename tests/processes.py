"""train.py as a process, alone or under torchrun; and in this one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

import train

TRAIN = Path(__file__).parents[1] / "train.py"


def start_training(
    ranks: int, *flags: str, script: Path = TRAIN, **popen: object
) -> subprocess.Popen:
    """Alone of as many threads as this process, so that both give equal bytes; stderr is a pipe."""
    engine = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *(engine if ranks > 1 else []), str(script), *flags]
    threads = 1 if ranks > 1 else torch.get_num_threads()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **popen)


def train_to_the_end(*flags: str, ranks: int = 1) -> None:
    """A run that nothing disturbs; of one process in this one, which has imported all it needs."""
    if ranks == 1:
        assert train.main(list(flags)) == 0
    else:
        finish(start_training(ranks, *flags, stdout=subprocess.DEVNULL))


def kill_all(process: subprocess.Popen) -> None:
    """kill -9 of the process and all below it: torchrun gives each rank a session of its own."""
    found = [process.pid]
    for pid in found:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def logged(folder: Path) -> list[dict]:
    """The lines of a run's log.jsonl, but for the seconds, which no two runs share."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name != "seconds"} for line in lines]


def finish(process: subprocess.Popen) -> str | None:
    """What it said on stdout, if that is a pipe; fails unless it ended well."""
    said, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints
    return said
