"""kill -9 at random moments, again and again: the run ends at the bytes of an undisturbed one."""

import json
import random
import subprocess
import time
from pathlib import Path

import pytest
from processes import kill_all, logged, start_training, train_to_the_end

COMBINATIONS = [(mode, ranks) for mode in ("prefix", "finetune") for ranks in (1, 2)]


def start(ranks: int, *flags: str) -> subprocess.Popen:
    return start_training(ranks, *flags, stdout=subprocess.DEVNULL)


def is_over(folder: Path) -> bool:
    return json.loads((folder / "run.json").read_text())["result"] is not None


def killed(process: subprocess.Popen, folder: Path, delay: float) -> None:
    """Wait till a step has been saved since the start, then `delay` seconds more, and kill all."""
    log, before = folder / "log.jsonl", time.time()
    while process.poll() is None:
        if log.exists() and log.stat().st_mtime > before:
            time.sleep(delay)
            break
        time.sleep(0.01)
    kill_all(process)


def kill_and_resume(mode, ranks, kills, small_model, small_data, tmp_path) -> None:
    flags = ["--mode", mode, "--model", str(small_model), "--data", str(small_data)]
    flags += ["--device", "cpu", "--batch-size", "8", "--micro-batch-size", "3"]
    epochs = str(10 * kills)  # of 5 steps, with a save after each
    flags += ["--epochs", epochs, "--evals", epochs]
    train_to_the_end(*flags, "--out", str(tmp_path / "whole"), ranks=ranks)
    cut, rng = tmp_path / "cut", random.Random(kills)
    for kill in range(kills):
        process = start(ranks, *(["--resume"] if kill else [*flags, "--out"]), str(cut))
        killed(process, cut, rng.uniform(0, 0.3))
        assert not is_over(cut)
    train_to_the_end("--resume", str(cut), ranks=ranks)
    kept = "prefix.safetensors" if mode == "prefix" else "model/model.safetensors"
    assert (cut / kept).read_bytes() == (tmp_path / "whole" / kept).read_bytes()
    assert logged(cut) == logged(tmp_path / "whole")
    # Nothing half-written is left over, under whatever name.
    for folder in ("", "checkpoint", *(["model"] if mode == "finetune" else [])):
        names = {path.name for path in (cut / folder).iterdir()}
        assert names == {path.name for path in (tmp_path / "whole" / folder).iterdir()}


@pytest.mark.parametrize(("mode", "ranks"), COMBINATIONS[::2])
def test_three_kills(mode: str, ranks: int, small_model, small_data, tmp_path: Path) -> None:
    kill_and_resume(mode, ranks, 3, small_model, small_data, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "ranks"), COMBINATIONS)
def test_twenty_kills(mode: str, ranks: int, small_model, small_data, tmp_path: Path) -> None:
    kill_and_resume(mode, ranks, 20, small_model, small_data, tmp_path)
