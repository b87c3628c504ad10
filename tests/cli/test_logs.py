"""What a run logs besides log.jsonl: the bar in a narrow terminal, TensorBoard, other trackers."""

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import types
from pathlib import Path

import pytest
from processes import TRAIN, logged

import train

GUIDE = Path(__file__).parents[2] / "docs" / "logs.md"
QUICK = ["--device", "cpu", "--batch-size", "8", "--evals", "2"]


@pytest.fixture
def flags(small_model: Path, small_data: Path, tmp_path: Path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["--model", str(small_model), "--data", str(small_data), *QUICK]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals")
def test_the_bar_at_60_columns(flags, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    environment = {**os.environ, "COLUMNS": "60", "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TRAIN), *flags, "--max-steps", "40", "--out", "run"]
    process = subprocess.Popen(command, stdout=theirs, env=environment)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # the end of a terminal, on Linux
        while select.select([ours], [], [], 120)[0] and (part := os.read(ours, 1 << 16)):
            said += part
    assert process.wait(timeout=60) == 0
    os.close(ours)
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode()))
    bars = [line for line in lines if "━" in line and "loss" in line]
    shape = r" *\d+/40 [━╸╺]+ +(\d\d|--):(\d\d|--) left  loss \d\.\d{3}  [\d,]+ tokens/s *"
    assert bars and all(re.fullmatch(shape, line) and len(line) <= 60 for line in bars), bars
    fresh = [line.strip() for line in lines if "dev loss" in line]
    shape = r"step {}  loss \d\.\d{{3}}  dev loss \d\.\d{{3}}  [\d,]+ tokens/s"
    assert len(fresh) == 2 and re.fullmatch(shape.format(20), fresh[0]), fresh


def test_tensorboard_has_what_the_log_has(flags, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    argv = [*flags, "--max-steps", "6", "--out", "run", "--log", "tensorboard"]
    assert train.main(argv) == 0
    # As a kill after the checkpoint of step 3 leaves it.
    content = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps({**content, "result": None}))
    Path("run/checkpoint/step-00000006.safetensors").unlink()
    assert train.main(["--resume", "run"]) == 0
    assert len(list(Path("run/tensorboard").iterdir())) == 2
    events = EventAccumulator("run/tensorboard").Reload()
    lines = [json.loads(line) for line in Path("run/log.jsonl").open()]
    names = {name for line in lines for name in line} - {"step"}
    assert set(events.Tags()["scalars"]) == names and "grad_norm" in names
    for name in names:
        expected = [(line["step"], line[name]) for line in lines if name in line]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected])


def test_a_missing_tensorboard_is_told_before_training(
    flags, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert train.main([*flags, "--out", "run", "--log", "tensorboard"]) == 2
    said = capsys.readouterr().err
    assert "needs the package tensorboard" in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_guide_s_recipe_for_other_trackers(flags, tmp_path: Path, monkeypatch) -> None:
    """With a stand-in for the tracker, which wants an account."""
    assert train.main([*flags, "--max-steps", "2"]) == 0
    seen: list = []

    class Run:
        def log(self, line: dict, step: int) -> None:
            seen.append((step, line))

    def init(config: dict, **_: str) -> contextlib.nullcontext:
        assert config["mode"] == "prefix"
        return contextlib.nullcontext(Run())

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    (recipe,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    exec(recipe.replace("prefix-tiny-1", "prefix-small-1"), {})
    assert [step for step, _ in seen] == [1, 2]
    (example,) = re.findall(r"^\{.*\}$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert list(json.loads(example)) == list(seen[-1][1])
    assert logged(Path("runs/prefix-small-1"))[1]["loss"] == seen[-1][1]["loss"]
