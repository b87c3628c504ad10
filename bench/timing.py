"""How long something takes, to the end of all its work."""

import time
from collections.abc import Callable

import torch


def timed(run: Callable[[], object]) -> float:
    """Seconds that `run` takes; a GPU has done what was asked of it before, and in it."""
    _wait()
    started = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
