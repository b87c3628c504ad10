"""Benchmarks as they are started: what they do on a machine without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


def run(script: str, *flags: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCH / script), *flags]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize("interpreted", ["0", "1"])
def test_attention_is_checked_where_it_cannot_be_timed(interpreted: str, tmp_path: Path) -> None:
    if interpreted == "1":
        pytest.importorskip("triton")
    path = tmp_path / "attention.json"
    done = run("attention.py", "--quick", "--json", str(path), TRITON_INTERPRET=interpreted)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Values and gradients are right (the ")
    assert ("interpreted" in done.stdout) == (interpreted == "1")
    assert done.stdout.endswith("times need a GPU.\n") and done.stderr.count("right: ") == 2
    assert json.loads(path.read_text())["attention"] == []
