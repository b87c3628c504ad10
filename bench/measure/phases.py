"""Where a step's time goes: forward, backward, optimizer."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from measure.timing import timed, wait
from mingpt_prefix import step


class Phases:
    """Stands for torch's `record_function`: adds up the seconds under each label, with a GPU's work
    brought to its end before and after."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def __call__(self, label: str) -> Iterator[None]:
        wait()
        started = time.perf_counter()
        yield
        wait()
        self.seconds[label] += time.perf_counter() - started


def shares(run: Callable[[], object]) -> dict[str, float]:
    """Which shares of a step, ours or the peers', are which; the rest is preparation."""
    phases = Phases()
    with ExitStack() as patched:
        for module in (step, sys.modules.get("methods.peers")):
            if module is not None:
                patched.enter_context(mock.patch.object(module, "record_function", phases))
        run()
        phases.seconds.clear()
        total = timed(run)
    return {name: phases.seconds[name] / total for name in ("forward", "backward", "optimizer")}
