"""What a resumed run warns of, refuses and allows; one process alone trains in a folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import finish, start_training

import train
from mingpt_prefix.accel.environment import changes
from mingpt_prefix.checkpoints.atomic_write import remove_parts
from mingpt_prefix.checkpoints.checkpoint import load_newest, save_checkpoint
from mingpt_prefix.checkpoints.pretrained import load_model, save_model

QUICK = ["--device", "cpu", "--batch-size", "8", "--max-steps", "4", "--evals", "2"]


@pytest.fixture(scope="module")
def made(small_model: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a base, data, a whole run of 4 steps, and one as it stood after step 2."""
    folder = tmp_path_factory.mktemp("resume")
    shutil.copytree(small_model, folder / "base")
    shutil.copy(small_data, folder / "tables.csv")
    flags = ["--model", "base", "--data", "tables.csv", "--seed", "7", *QUICK, "--out", "whole"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train.main(flags) == 0
    run = shutil.copytree(folder / "whole", folder / "run")
    (run / "checkpoint" / "step-00000004.safetensors").unlink()
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**content, "result": None}))
    return folder


@pytest.fixture
def stopped(made: Path, tmp_path: Path, monkeypatch) -> Path:
    """The run to go on with, in a current folder of its own."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def same_prefix(run: Path) -> bool:
    name = "prefix.safetensors"
    return (run / name).read_bytes() == (run.parent / "whole" / name).read_bytes()


def refusal(capsys, *flags: str) -> str:
    capsys.readouterr()
    assert train.main(["--resume", "run", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_seed_and_machine_are_recorded(stopped: Path) -> None:
    assert json.loads((stopped / "run.json").read_text())["config"]["seed"] == 7
    machine = load_newest(stopped / "checkpoint").state["machine"]
    assert machine["torch"] == torch.__version__ and machine["processes"] == 1
    assert machine["threads"] == torch.get_num_threads() and machine["processor"]


def test_the_same_machine_is_not_warned_of(stopped: Path, capsys) -> None:
    assert train.main(["--resume", "run"]) == 0
    assert capsys.readouterr().err == "" and same_prefix(stopped)


def test_another_machine_is_warned_of(stopped: Path, capsys) -> None:
    checkpoint = load_newest(stopped / "checkpoint")
    machine = {**checkpoint.state["machine"], "torch": "2.0\n", "threads": 99}
    state = {**checkpoint.state, "machine": machine}
    save_checkpoint(stopped / "checkpoint", checkpoint.step, checkpoint.tensors, state)
    assert train.main(["--resume", "run"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert f"torch 2.0\\n, now {torch.__version__}; threads 99, now" in line
    assert "processor" not in line and "may differ in its bytes" in line


def test_what_was_not_recorded_has_not_changed() -> None:
    now = {"torch": "2.6", "threads": 2}
    for nothing in (None, {}, [], "x", {"processor": "y"}, {"threads": 2}):
        assert changes(nothing, now) == []
    assert changes({"threads": None, "torch": "2.6"}, now) == ["threads None, now 2"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--lr", "0.5"), ("--epochs", "5"), ("--batch-size", "4"), ("--micro-batch-size", "2"),
        ("--seed", "8"), ("--evals", "4"), ("--prefix-length", "3"), ("--mode", "finetune"),
        ("--model", "tiny"), ("--reparam",), ("--max-steps", "6"), ("--limit-examples", "9"),
    ],
    ids=lambda flags: flags[0][2:],
)  # fmt: skip
def test_settings_that_matter_are_refused(stopped: Path, capsys, flags) -> None:
    line = refusal(capsys, *flags)
    name = flags[0].replace("--no-", "--")
    assert f"{name} " in line and "the run has" in line


def test_files_that_moved_and_recomputation_are_allowed(stopped: Path, capsys) -> None:
    os.rename("tables.csv", "moved.csv")
    os.rename("base", "moved")
    assert "tables.csv" in refusal(capsys, "--model", "moved")
    assert "base" in refusal(capsys, "--data", "moved.csv")
    flags = ["--data", "moved.csv", "--model", "moved", "--grad-checkpoint"]
    assert train.main(["--resume", "run", *flags]) == 0
    assert same_prefix(stopped)


def test_another_base_or_other_data_is_refused(stopped: Path, capsys) -> None:
    model = load_model("base")
    with torch.no_grad():
        model.wte.weight[0, 0] += 1
    save_model(model, Path("other"))
    assert "base model is not what the run began with" in refusal(capsys, "--model", "other")
    rows = Path("tables.csv").read_text()
    Path("less.csv").write_text(rows.replace("Inn 39 is", "Inn 39 was"))
    assert "data is not what the run began with" in refusal(capsys, "--data", "less.csv")


def test_one_process_alone_trains_in_a_folder(stopped: Path, capsys) -> None:
    code = "import sys, time; from pathlib import Path; "
    code += "from mingpt_prefix.checkpoints.run_folder import RunFolder; "
    code += "held = RunFolder.reopen(Path('run'), 2); print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code]
    root = str(Path(train.__file__).parent)
    environment = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout.readline() == b"held\n"
        assert "another process is training in it" in refusal(capsys)
        other.kill()  # which leaves no lock behind
    assert train.main(["--resume", "run"]) == 0 and same_prefix(stopped)


def test_folders_of_runs_that_begin_together(tmp_path: Path) -> None:
    code = "from mingpt_prefix.checkpoints.run_folder import RunFolder, next_folder\n"
    code += "print('ready', flush=True); input()\n"
    code += "for _ in range(100): print(RunFolder.create(next_folder('prefix-tiny'), {}).path)"
    environment = {**os.environ, "PYTHONPATH": str(Path(train.__file__).parent)}
    streams = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    command = [sys.executable, "-c", code]
    runs = [subprocess.Popen(command, cwd=tmp_path, env=environment, **streams) for _ in range(4)]
    assert [run.stdout.readline() for run in runs] == ["ready\n"] * 4
    for run in runs:
        run.stdin.write("\n")
        run.stdin.flush()
    made = [folder for run in runs for folder in run.communicate()[0].split()]
    assert sorted(made) == sorted(f"runs/prefix-tiny-{n}" for n in range(1, 401))


def test_half_a_swap_of_models_is_undone(tmp_path: Path) -> None:
    old, part = (tmp_path / f"model.{'0a' * 16}.{end}" for end in ("old", "part"))
    for folder in (old, part):
        folder.mkdir()
        (folder / "file").write_text(folder.suffix)
    (tmp_path / "notes.old").write_text("not ours")
    remove_parts(tmp_path)
    assert (tmp_path / "model" / "file").read_text() == ".old"
    shutil.copytree(tmp_path / "model", old)
    remove_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "notes.old"]


@pytest.mark.slow
def test_one_of_two_ranks_killed_ends_both(small_model, small_data, tmp_path: Path) -> None:
    flags = ["--model", str(small_model), "--data", str(small_data), "--device", "cpu"]
    flags += ["--batch-size", "8", "--epochs", "60", "--evals", "60"]
    finish(start_training(2, *flags, "--out", str(tmp_path / "whole"), stdout=subprocess.DEVNULL))
    cut = tmp_path / "cut"
    process = start_training(2, *flags, "--out", str(cut), stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(cut.glob("checkpoint/*.safetensors")):
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    finish(start_training(2, "--resume", str(cut), stdout=subprocess.DEVNULL))
    assert same_prefix(cut)
