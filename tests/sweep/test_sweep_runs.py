"""train.py --sweep: what it leaves, what it refuses, and that it can be cut anywhere."""

import json
import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest
from processes import kill_all, start_training, train_to_the_end
from safetensors.torch import load_file

import train
from mingpt_prefix.checkpoints.run_folder import RunFolder
from mingpt_prefix.sweep.width import kept_for_backward, width_by_memory

QUICK = ["--batch-size", "8", "--evals", "2", "--device", "cpu"]


@pytest.fixture
def flags(small_model: Path, small_data: Path, tmp_path: Path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["--mode", "prefix", "--model", str(small_model), "--data", str(small_data), *QUICK]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def run_json(folder: Path) -> dict:
    content = json.loads((folder / "run.json").read_text())
    for name in ("seconds", "peak_memory"):
        del content["result"][name]
    return content


def without_seconds(folder: Path) -> list[dict]:
    lines = RunFolder(folder).read_log()
    return [{name: value for name, value in x.items() if name != "seconds"} for x in lines]


def same_bytes(folder: Path, other: Path) -> bool:
    name = "prefix.safetensors"
    same = (folder / name).read_bytes() == (other / name).read_bytes()
    return same and without_seconds(folder) == without_seconds(other)


def test_members_leave_what_runs_of_their_own_do(flags, sample, capsys) -> None:
    given = ["prefix_length=2,3", "max_steps=4,6"]
    assert train.main([*flags, "--sweep", *given, "--sweep-width", "3", "--out", "s"]) == 0
    said = capsys.readouterr().out
    assert "4 prefixes, 3 at once, of 4 to 6 steps each." in said
    content = json.loads(Path("s/sweep.json").read_text())
    assert Path("s/sweep.png").stat().st_size > 1000
    for each in content["members"]:
        steps, length = (each["settings"][name] for name in ("max_steps", "prefix_length"))
        assert each["folder"] == f"prefix_length={length},max_steps={steps}"
        folder, own = Path("s") / each["folder"], Path("own") / each["folder"]
        more = ["--prefix-length", length, "--max-steps", steps, "--out", str(own)]
        assert train.main([*flags, *more]) == 0
        # Of the last two checkpoints the first is saved when any member has a dev loss.
        assert files(folder) ^ files(own) <= {
            f"checkpoint/step-0000000{n}.safetensors" for n in (2, 3, 4)
        }
        assert run_json(folder) == run_json(own)
        ours, theirs = RunFolder(folder).read_log(), RunFolder(own).read_log()
        assert [line.keys() for line in ours] == [line.keys() for line in theirs]
        for name in ("loss", "lr", "dev_loss"):
            found = [line[name] for line in ours if name in line]
            assert found == pytest.approx([x[name] for x in theirs if name in x], abs=1e-4)
        kept, expected = (load_file(path / "prefix.safetensors") for path in (folder, own))
        assert kept["prefix_kv"] == pytest.approx(expected["prefix_kv"], abs=1e-3)
        (row,) = [line for line in said.splitlines() if f"max_steps={steps} " in line
                  and f"prefix_length={length} " in line]  # fmt: skip
        assert f"{each['result']['best_dev_loss']:.4f}" in row
    command = next(line for line in said.splitlines() if line.startswith("Next: "))
    assert sample.main([*shlex.split(command)[3:], "--beams", "1"]) == 0


def test_alone_or_one_at_a_time_the_bytes_are_the_same(flags) -> None:
    flags = [*flags, "--max-steps", "5", "--micro-batch-size", "3", "--prefix-dropout", "0.2"]
    assert train.main([*flags, "--sweep", "seed=3,4", "--sweep-width", "1", "--out", "s"]) == 0
    for seed in ("3", "4"):
        assert train.main([*flags, "--seed", seed, "--out", seed]) == 0
        assert same_bytes(Path(seed), Path("s") / f"seed={seed}")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--sweep", "colour=1,2"], "--sweep colour: no such setting; those are batch_size,"),
        (["--sweep", "model=tiny,gpt2"], "--sweep model: it is the same for all members"),
        (["--sweep", "lora_rank=1,2"], "--sweep lora_rank: it is the same for all members"),
        (["--sweep", "seed=0,1,00"], "--sweep seed: 00 is given twice"),
        (["--sweep", "seed=0,1", "lr=1,1.0"], "--sweep lr: 1.0 is given twice"),
        (["--sweep", "seed=0", "seed=1"], "--sweep seed: it is swept twice"),
        (["--sweep", "seed=0,x"], "--sweep seed: 'x' is not a whole number"),
        (["--sweep", "lr=1,abc"], "--sweep lr: 'abc' is not a number"),
        (["--sweep", "seed"], "--sweep seed: expected a setting, =, and values"),
        (["--sweep", "seed=0,,1"], "--sweep seed=0,,1: expected a setting"),
        (["--sweep", f"seed={','.join(map(str, range(10_000)))}"], "--sweep: 10,000 members"),
        (["--seed", "1", "--sweep", "seed=0,1"], "--seed and --sweep seed exclude each other"),
        (["--sweep", "reparam=true,false"], "--sweep reparam=true: --optimizer muon is for"),
        (["--sweep", "prefix_length=5,200"], "--sweep prefix_length=200: prefix-length must lie"),
        (["--sweep", "prefix_length=5,150"], "--sweep prefix_length=150: 150 prefix rows and"),
        (["--sweep", "depth=all,embedding", "reparam=true,false"], "reparam=false: depth embedd"),
        (["--sweep", "data=none.csv"], "--data and --sweep data exclude each other"),
        (["--sweep", "seed=0,1", "--sweep-width", "0"], "sweep-width must be positive"),
        (["--sweep-width", "2"], "--sweep-width is for --sweep"),
        (["--sweep", "seed=0,1", "--resume", "x"], "--resume of a sweep takes no other flags"),
    ],
)
def test_bad_sweeps_are_one_line_and_write_nothing(flags, capsys, given, reason) -> None:
    optimizer = ["--optimizer", "muon"] if "reparam=true,false" == given[-1] else []
    optimizer = [] if "depth=all,embedding" in given else optimizer
    assert train.main([*flags, *optimizer, *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line and len(line) < 600
    assert not os.listdir()


def test_lora_is_refused(flags, capsys) -> None:
    assert train.main(["--mode", "lora", *flags[2:], "--sweep", "seed=0,1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: --sweep is for --mode prefix, not lora: ")


def test_one_that_diverges_is_told_and_the_others_go_on(flags, capsys) -> None:
    flags = [*flags, "--max-steps", "6", "--sweep", "lr=1e35,0.01", "--out", "s"]
    assert train.main(flags) == 0
    wild, calm = json.loads(Path("s/sweep.json").read_text())["members"]
    assert 1 < wild["stopped"]["step"] < 6 and "result" not in wild
    assert calm["result"]["best_step"] > 0
    said = capsys.readouterr().out
    assert f"lr=1e35  stopped at step {wild['stopped']['step']}: the loss is" in said
    assert train.main(["--resume", "s"]) == 2
    assert "this sweep has finished" in capsys.readouterr().err


def test_several_tasks(flags, small_data: Path) -> None:
    text = small_data.read_text()
    Path("a.csv").write_text(text)
    Path("b.csv").write_text(text.replace("Inn", "Bar"))
    flags = [*flags[:4], *QUICK, "--max-steps", "2", "--sweep", "data=a.csv,b.csv"]
    assert train.main(flags) == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("sweep-")
    a, b = (run_json(folder / f"data={name}.csv") for name in "ab")
    assert a["config"]["data"] == ["a.csv"] and a["data"] != b["data"]


def test_memory_bounds_the_width(small_model: Path, small_data: Path, monkeypatch) -> None:
    from test_sweep import MEMBERS, tables

    from mingpt_prefix.checkpoints.pretrained import load_model
    from mingpt_prefix.sweep import width
    from mingpt_prefix.sweep.together import member_trainer

    model = load_model(small_model).requires_grad_(False)
    trainer = member_trainer(MEMBERS[-3], model, tables(9), ())
    kept = kept_for_backward(trainer)
    monkeypatch.setattr(width, "free_memory", lambda device: 100 * kept)
    assert 10 < width_by_memory(trainer) < 70
    assert width_by_memory(trainer, processes=5) < width_by_memory(trainer) / 4
    monkeypatch.setattr(width, "free_memory", lambda device: 0)
    assert width_by_memory(trainer) == 1


def sweep(ranks: int, *flags: str) -> subprocess.Popen:
    return start_training(ranks, *flags, stdout=subprocess.DEVNULL)


def cut_and_compare(ranks: int, flags: list[str], kills: int) -> None:
    """Kill the sweep soon after it has saved, again and again: it ends at the same bytes."""
    given = ["prefix_length=2,3", "max_steps=30,90"]
    flags = [*flags, "--sweep", *given, "--sweep-width", "3", "--evals", "15"]
    train_to_the_end(*flags, "--out", "whole", ranks=ranks)
    for number in range(kills):
        process = sweep(ranks, *(["--resume"] if number else [*flags, "--out"]), "cut")
        before = time.time()
        while process.poll() is None:
            saved = [path.stat().st_mtime for path in Path("cut").glob("*/log.jsonl")]
            if max(saved, default=0) > before:
                break
            time.sleep(0.01)
        time.sleep(0.05 * number)
        kill_all(process)
    train_to_the_end("--resume", "cut", ranks=ranks)
    assert len(list(Path("whole").iterdir())) == 6
    for folder in (path for path in Path("whole").iterdir() if path.is_dir()):
        assert same_bytes(folder, Path("cut") / folder.name)
        assert files(folder) == files(Path("cut") / folder.name)


def test_a_killed_sweep_goes_on_to_the_same_bytes(flags) -> None:
    cut_and_compare(1, flags, kills=2)


@pytest.mark.slow
def test_ranks_share_the_members(flags) -> None:
    cut_and_compare(2, flags, kills=2)
