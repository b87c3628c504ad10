"""Disks that are full or read-only: one line says so, and the run goes on from what was saved.

A limit of file sizes (RLIMIT_FSIZE) is set on a running process; a small tmpfs is a disk that is
really full, where the system lets one be mounted.
"""

import ctypes
import json
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import finish, logged, start_training, train_to_the_end

from mingpt_prefix.checkpoints.checkpoint import load_newest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and mounts are Linux's")
QUICK = ["--device", "cpu", "--batch-size", "8", "--epochs", "40", "--evals", "40"]
PREFIX, MODEL = "prefix.safetensors", "model/model.safetensors"
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1


def start(*flags: str, **popen: object) -> subprocess.Popen:
    return start_training(1, *QUICK, *flags, stdout=subprocess.DEVNULL, **popen)


def one_line(process: subprocess.Popen) -> str:
    """What a run that cannot go on says, and that it ends with exit code 2."""
    complaints = process.communicate(timeout=120)[1].splitlines()
    assert process.returncode == 2 and len(complaints) == 1, complaints
    assert complaints[0].startswith("train.py: ")
    return complaints[0]


def wait_for_a_checkpoint(process: subprocess.Popen, run: Path) -> None:
    while process.poll() is None and not list(run.glob("checkpoint/step-*.safetensors")):
        time.sleep(0.005)
    assert process.poll() is None


def assert_intact(run: Path) -> None:
    """Nothing half-written, and a checkpoint of a run that has not ended."""
    assert not [path for path in run.rglob("*") if re.search(r"\.(part|old|tmp)", path.name)]
    assert load_newest(run / "checkpoint").step > 0
    assert json.loads((run / "run.json").read_text())["result"] is None


# The log alone, and maybe the prefix, can be written below 20,000 bytes; the checkpoint cannot.
@pytest.mark.parametrize(
    ("mode", "limit"),
    [
        ("prefix", 20_000),
        pytest.param("finetune", 0, marks=pytest.mark.slow),
        pytest.param("prefix", 0, marks=pytest.mark.slow),
        pytest.param("finetune", 20_000, marks=pytest.mark.slow),
    ],
)
def test_no_room_in_the_middle_of_a_run(mode, limit, small_model, small_data, tmp_path) -> None:
    flags = ["--mode", mode, "--model", str(small_model), "--data", str(small_data)]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = start(*flags, "--out", str(cut))
    wait_for_a_checkpoint(process, cut)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    said = one_line(process)
    assert "File too large" in said and f"to continue: python train.py --resume {cut}" in said
    assert_intact(cut)
    train_to_the_end("--resume", str(cut))
    train_to_the_end(*QUICK, *flags, "--out", str(whole))
    kept = PREFIX if mode == "prefix" else MODEL
    assert (cut / kept).read_bytes() == (whole / kept).read_bytes()
    assert logged(cut) == logged(whole)


def test_a_full_disk(small_model, small_data, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        cut = disk / "cut"
        flags = ["--model", str(small_model), "--data", str(small_data), "--out", str(cut)]
        process = start(*flags, "--max-steps", "60")
        wait_for_a_checkpoint(process, cut)
        with (disk / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError:
                pass
        said = one_line(process)
        assert "No space left on device" in said and f"--resume {cut}" in said
        assert_intact(cut)
        (disk / "filler").unlink()
        # Not in this process, in which the run's lock could keep the disk from being unmounted.
        finish(start_training(1, "--resume", str(cut), stdout=subprocess.DEVNULL))
        assert json.loads((cut / "run.json").read_text())["result"]["steps"] == 60
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def without_override() -> None:
    """In a child: what a folder's permissions forbid is forbidden to root too."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


@pytest.fixture
def permissions(tmp_path: Path) -> None:
    """Skips where root cannot give up its right to write everywhere."""
    folder = tmp_path / "probe"
    folder.mkdir(mode=0o555)
    probe = [sys.executable, "-c", f"open({str(folder / 'file')!r}, 'w')"]
    done = subprocess.run(probe, preexec_fn=without_override, capture_output=True)
    if done.returncode == 0:
        pytest.skip("permissions do not bind this user")


def test_a_read_only_folder(permissions, small_model, small_data, tmp_path: Path) -> None:
    run = tmp_path / "probe" / "run"
    flags = ["--model", str(small_model), "--data", str(small_data), "--out", str(run)]
    said = one_line(start(*flags, preexec_fn=without_override))
    assert str(run) in said and "Permission denied" in said
    assert not list(run.parent.iterdir())


@pytest.mark.slow
def test_a_folder_that_becomes_read_only(permissions, small_model, small_data, tmp_path) -> None:
    run = tmp_path / "run"
    flags = ["--model", str(small_model), "--data", str(small_data), "--out", str(run)]
    process = start(*flags, preexec_fn=without_override)
    wait_for_a_checkpoint(process, run)
    folders = [run, run / "checkpoint"]
    for folder in folders:
        folder.chmod(0o555)
    try:
        said = one_line(process)
        assert "Permission denied" in said and f"--resume {run}" in said
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert_intact(run)
    train_to_the_end("--resume", str(run))
