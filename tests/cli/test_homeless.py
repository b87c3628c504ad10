"""Users without a home folder, without an entry among the users, or with a home they cannot write:
services, and containers started under a number."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AS_A_NUMBER = ["unshare", "--user", "--map-user=12345"]
SAMPLE = ("sample.py", "--table", "name[The Mill], eatType[pub]", "--beams", "1", "--device", "cpu")


def run(folder: Path, *command: str, **changes: str | None) -> subprocess.CompletedProcess:
    """Python as a user that the system does not know; None takes a variable away."""
    changes = {
        "HOME": None,
        "MINGPT_PREFIX_CACHE": None,
        "TIKTOKEN_CACHE_DIR": None,
        "OMP_NUM_THREADS": "1",
        **changes,
    }
    changes |= {"PYTHONPATH": str(ROOT)}
    environment = {k: v for k, v in {**os.environ, **changes}.items() if v is not None}
    if command[0] != "-c":
        command = (str(ROOT / command[0]), *command[1:])
    return subprocess.run(
        [*AS_A_NUMBER, sys.executable, *command],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of its own; skips where a user of another number cannot be had."""
    if shutil.which("unshare") is None or run(tmp_path, "-c", "pass").returncode:
        pytest.skip("there are no user namespaces here")
    return tmp_path


def one_line(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize("home", [None, "/nonexistent"])
def test_training(home: str | None, place: Path, small_model: Path, small_data: Path) -> None:
    flags = ("--model", str(small_model), "--data", str(small_data), "--max-steps", "1")
    done = run(place, "train.py", *flags, "--device", "cpu", "--out", "run", HOME=home)
    assert done.returncode == 0, done.stderr
    assert "After training: dev BLEU" in done.stdout and (place / "run" / "loss.png").exists()
    assert [path.name for path in place.iterdir()] == ["run"]


def test_downloads_need_a_folder(place: Path) -> None:
    code = "import sys, {0}; from mingpt_prefix.cli.terminal import run_script; sys.exit({1})"
    load = "run_script('x', lambda: mingpt_prefix.data.{0})"
    e2e = code.format(
        "mingpt_prefix.data.datasets", load.format("datasets.load_split(['e2e'], 'dev')")
    )
    gpt2 = code.format(
        "mingpt_prefix.data.tokenizer", load.format("tokenizer.load_tokenizer('gpt2')")
    )
    for program in (e2e, gpt2):
        said = one_line(run(place, "-c", program))
        assert said.startswith("x: ~/.cache/mingpt-prefix: no such home folder; set MINGPT_PREFIX_")
    said = one_line(run(place, "-c", e2e, MINGPT_PREFIX_CACHE="~nobody-of-that-name/cache"))
    assert said.startswith("x: ~nobody-of-that-name/cache: no such home folder; set MINGPT_PREFIX_")
    assert not list(place.iterdir())


def test_a_folder_for_downloads_is_enough(place: Path) -> None:
    done = run(place, *SAMPLE, "--model", "gpt2", MINGPT_PREFIX_CACHE=".", HF_HUB_OFFLINE="1")
    assert one_line(done).startswith(
        "sample.py: gpt2: model.safetensors is not in the Hugging Face cache"
    )
