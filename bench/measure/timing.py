"""How long something takes, to the end of all its work; quantiles of such times."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from mingpt_prefix.accel.cuda_graphs import capture

CALLS = 10  # in one graph: a graph's own launch costs as much as a small kernel


def timed(run: Callable[[], object]) -> float:
    """Seconds that `run` takes, with the GPU's work in it, and none from before."""
    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def gpu_seconds(run: Callable[[], object], samples: int) -> list[float]:
    """Seconds of `samples` runs by the GPU's own clock, after three to warm up."""
    for _ in range(3):
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(samples + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    wait()
    pairs = zip(marks[:-1], marks[1:], strict=True)
    return [before.elapsed_time(after) / 1e3 for before, after in pairs]


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """p20, p50, p80; of a single value that value."""
    if len(values) == 1:
        return (values[0],) * 3
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], statistics.median(values), fifths[3]


def captured(run: Callable[[], object]) -> Callable[[], None]:
    """`run` as the replay of a CUDA graph; it is run three times before, to warm up."""
    return capture(run, warm_up=3).replay


def time_eagerly(run: Callable[[], object], samples: int, calls: int = 1) -> tuple[float, ...]:
    """p20, p50, p80 of the seconds that one of `run`'s `calls` takes on a GPU."""
    return quantiles([seconds / calls for seconds in gpu_seconds(run, samples)])


def time_replays(run: Callable[[], object], samples: int) -> tuple[float, ...]:
    """The same for a call, replayed in a CUDA graph of several."""
    return time_eagerly(captured(lambda: [run() for _ in range(CALLS)]), samples, CALLS)


def wait() -> None:
    """Wait until a GPU has done all its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
