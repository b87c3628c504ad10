"""The machine: what a measurement was taken on, what a run's bytes depend on beside its settings,
and its memory."""

import contextlib
import ctypes
import platform
from pathlib import Path

import torch

from mingpt_prefix.errors import printable

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # as malloc.h numbers them


def machine_line(device: torch.device) -> str:
    """The GPU, or the processor and its threads, and the versions of Python and torch."""
    unit = _unit(device)
    if device.type != "cuda":
        threads = torch.get_num_threads()
        unit += f", {threads} thread{'s' if threads > 1 else ''}"
    return f"{unit}, Python {platform.python_version()}, torch {torch.__version__}"


def surroundings(device: torch.device, ranks: int) -> dict[str, str | int]:
    """What rounding depends on: if these are the same, equal runs of `ranks` give equal bytes."""
    return {
        "processor": _unit(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": ranks,
    }


def changes(before: object, now: dict[str, str | int]) -> list[str]:
    """What differs between two `surroundings`, in words. What was not recorded is the same."""
    before = before if isinstance(before, dict) else {}
    return [
        f"{name} {printable(str(before[name]))}, now {value}"
        for name, value in now.items()
        if before.get(name, value) != value
    ]


def _unit(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def keep_freed_memory() -> None:
    """Let the C library keep memory that the main thread frees, and use it again.

    By default glibc returns large blocks to the system, which clears them page by page when they
    are allocated again: a training step on the CPU spends a tenth of its time so. The process then
    never shrinks. With another C library nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)


def peak_memory(device: torch.device) -> int | None:
    """The most bytes in use so far: torch's allocations on a GPU, else the process's memory.

    None if the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage: a process begins there with the peak of the one that started it.
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    peaks = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return next(peaks, None)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken: of a GPU, else of the system and of the process's group.

    None if the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):  # no limit is the word "max"
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        found.append(max(0, limit - used))
    return min(found, default=None)
