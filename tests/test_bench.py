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


def test_block_sizes_are_checked_where_they_cannot_be_timed(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    path = tmp_path / "tiles.json"
    done = run("tiles.py", "--json", str(path), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    for name in ("forward", "backward"):
        found = [row for row in rows if row["pass"] == name]
        assert len(found) > 5 and sum(row["is_usual"] for row in found) == 1
        assert not any("failed" in row or "seconds" in row for row in found)
    done = run("tiles.py", TRITON_INTERPRET="0")
    assert done.returncode == 1 and done.stderr.startswith("bench/tiles.py: it needs a GPU")


def test_steps_are_timed_beside_the_peers_in_processes_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    path = tmp_path / "speed.json"
    done = run("speed.py", "--model", "tiny", "--quick", "--json", str(path))
    assert done.returncode == 0, done.stderr
    (shape,) = json.loads(path.read_text())["shapes"]
    assert "- PEFT prefix / prefix: " in done.stdout
    names = ["prefix", "fine-tuning", "PEFT prefix", "transformers fine-tuning"]
    assert [row["method"] for row in shape["rows"]] == names
    for row in shape["rows"]:
        assert len(row["seconds"]) == 3 and min(row["seconds"]) > 0
        assert 0.5 < sum(row["shares"].values()) <= 1.05
        assert row["peak_memory"] is None or row["peak_memory"] > 50e6
    ours, theirs = shape["rows"][1], shape["rows"][3]  # both with two moments of every weight
    assert ours["optimizer_bytes"] == pytest.approx(theirs["optimizer_bytes"], rel=1e-3)


def test_a_method_whose_process_ends_is_named(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import speed_workers
    from speed_methods import Args

    with speed_workers.Worker(Args(), "tiny", "prefix") as worker:
        worker.process.kill()
        with pytest.raises(SystemExit, match="prefix: its process ended, with exit code -9"):
            worker.run([[0]])


def test_decoding_is_timed_beside_peft(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    path = tmp_path / "decode.json"
    flags = ["--model", "tiny", "--quick", "--new-tokens", "4", "--beams", "1"]
    done = run("decode.py", *flags, "--json", str(path))
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["decoding"]
    assert [row["method"] for row in rows] == ["ours", "PEFT"]


def test_the_gpu_command_goes_on_past_a_failure_and_says_what_failed(tmp_path: Path) -> None:
    """With a Python that fails in one part and hangs in another."""
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(
        "#!/usr/bin/env bash\n"
        'case "$*" in *speed.py*) echo no kernel; exit 3;; *decode.py*) sleep 60;; esac\n'
        'while (($#)); do [[ $1 == --json ]] && echo "{}" > "$2"; shift; done\n'
    )
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "LIMIT_S": "8"}
    command = ["bash", str(BENCH / "gpu.sh"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 6, done.stdout
    assert "tests: exit code 0" in done.stdout and "no kernel" in done.stdout
    assert "Failed: speed (exit code 3)" in done.stdout
    assert "Failed: decode (stopped after" in done.stdout
    assert "Failed: attention (no time left)" in done.stdout
    assert "Failed: bank (no time left)" in done.stdout
    assert "Failed: tiles (no time left)" in done.stdout
    assert "Failed: table (no time left)" in done.stdout
    names = ["decode.log", "kernels.log", "speed.log", "tests.log"]
    assert sorted(p.name for p in out.iterdir()) == names
