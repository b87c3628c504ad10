"""Two ranks beside a busy loop on every core: undisturbed, stopped or killed, runs end alike."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import kill_all, logged, start_training

FLAGS = ["--model", "tiny", "--device", "cpu", "--prefix-length", "5", "--batch-size", "4"]
FLAGS += ["--epochs", "2", "--evals", "10"]  # 20 steps, with a save after every second one


@pytest.fixture(scope="module")
def load() -> Iterator[None]:
    """A busy loop for each core that has nothing to do yet."""
    idle = os.cpu_count() - int(os.getloadavg()[0])
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(idle)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


def start(*flags: str) -> subprocess.Popen:
    return start_training(2, *flags, stdout=subprocess.PIPE)


def end_well(process: subprocess.Popen) -> None:
    complaints = process.communicate(timeout=900)[1]
    assert (process.returncode, complaints) == (0, "")


def wait_for_step(process: subprocess.Popen, number: int) -> None:
    assert any(line.startswith(f"step {number}/") for line in process.stdout)


@pytest.fixture(scope="module")
def whole(load, small_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    end_well(start(*FLAGS, "--data", str(small_data), "--out", str(folder)))
    return folder


def stop(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGTERM)
    said, complaints = process.communicate(timeout=900)
    assert process.returncode != 0 and "Stopped after step" in said
    # torchrun's own process may abort after a signal; unlike the ranks, it has Python report that.
    assert complaints.count("terminate called") == complaints.count("Fatal Python error: Aborted")


def kill_one(process: subprocess.Popen) -> None:
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    process.communicate(timeout=900)
    assert process.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["undisturbed", "stopped", "killed"])
@pytest.mark.parametrize("number", range(20))
def test_twenty_runs(way: str, number: int, whole: Path, small_data, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(*FLAGS, "--data", str(small_data), "--out", str(folder))
    if way != "undisturbed":
        wait_for_step(process, 2 + number % 16)
        disturb = stop if way == "stopped" else (kill_all, kill_one)[number % 2]
        disturb(process)
        process = start("--resume", str(folder))
    end_well(process)
    assert logged(folder) == logged(whole)
    kept = "prefix.safetensors"
    assert (folder / kept).read_bytes() == (whole / kept).read_bytes()
