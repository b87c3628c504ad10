"""What a measurement was taken on."""

import platform
from pathlib import Path

import torch


def machine_line(device: torch.device) -> str:
    """The GPU, or the processor and its threads, and the versions of Python and torch."""
    if device.type == "cuda":
        unit = torch.cuda.get_device_name()
    else:
        threads = torch.get_num_threads()
        unit = f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"
    return f"{unit}, Python {platform.python_version()}, torch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def peak_memory(device: torch.device) -> int | None:
    """The most bytes in use so far: torch's allocations on a GPU, else the process's memory.

    None where the system does not tell.
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
