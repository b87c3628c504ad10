"""Two ranks on the CPU: the losses of a single process, files written once, stopping together."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
from processes import finish, logged, start_training, train_to_the_end
from safetensors.torch import load_file

from mingpt_prefix.accel.distributed import ALONE, World

QUICK = ["--device", "cpu", "--epochs", "2", "--evals", "2", "--dropout", "0"]


def start(ranks: int, *flags: str) -> subprocess.Popen:
    return start_training(ranks, *flags, stdout=subprocess.PIPE)


def stop_after_a_step(process: subprocess.Popen) -> None:
    for line in process.stdout:
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGTERM)
    assert "Stopped after step" in process.communicate(timeout=60)[0]


def assert_same_steps(one: list[dict], two: list[dict]) -> None:
    for left, right in zip(one, two, strict=True):
        norms = [line.pop("grad_norm") for line in (left, right)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)
        assert right == pytest.approx(left, abs=1e-5)


ADAMW = ["--optimizer", "adamw", "--lr", "0.001"]


# 38 training rows: batches of 3 give one rank 2 and the other 1, and the last batch of 2 one each;
# batches of 37 leave a last one of a single row, of which the second rank has none.
@pytest.mark.parametrize(
    "flags",
    [
        ["--mode", "prefix", "--batch-size", "3"],
        ["--mode", "prefix", *ADAMW, "--batch-size", "3"],
        ["--mode", "prefix", *ADAMW, "--batch-size", "37", "--micro-batch-size", "7"],
        ["--mode", "prefix+lora", *ADAMW, "--batch-size", "37", "--micro-batch-size", "7"],
        ["--mode", "finetune", "--batch-size", "3"],
        ["--mode", "finetune", "--batch-size", "37", "--micro-batch-size", "7"],
    ],
    ids=lambda flags: "-".join(flags[1::2]),
)
def test_two_ranks_give_the_losses_of_one(
    flags, small_model, small_data, tmp_path: Path, capsys
) -> None:
    flags = [*flags, "--model", str(small_model), "--data", str(small_data), *QUICK]
    process = start(2, *flags, "--out", str(tmp_path / "2"))
    train_to_the_end(*flags, "--out", str(tmp_path / "1"))
    alone, together = capsys.readouterr().out, finish(process)
    one, two = logged(tmp_path / "1"), logged(tmp_path / "2")
    assert len(one) == len(two) > 1
    assert_same_steps(one, two)
    assert together.count("Training ") == alone.count("Training ") == 1
    assert together.count("Saved ") == 1


def test_a_signal_stops_both_and_resuming_ends_at_the_same_losses(
    small_model, small_data, tmp_path: Path
) -> None:
    flags = ["--mode", "prefix", "--model", str(small_model), "--data", str(small_data), *QUICK]
    flags += ["--batch-size", "3", "--epochs", "16"]
    finish(start(2, *flags, "--out", str(tmp_path / "whole")))
    stop_after_a_step(start(2, *flags, "--out", str(tmp_path / "cut")))
    finish(start(2, "--resume", str(tmp_path / "cut")))
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    whole, cut = (tmp_path / name / "prefix.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


@pytest.mark.parametrize(
    "flags",
    [
        ["--mode", "finetune", "--batch-size", "3", "--micro-batch-size", "1"],
        pytest.param(
            ["--mode", "finetune", "--batch-size", "37", "--grad-checkpoint"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["uneven", "grad-checkpoint"],
)
def test_shards_give_the_losses_and_the_files_of_one_process(
    flags, small_model, small_data, tmp_path: Path
) -> None:
    flags = [*flags, "--model", str(small_model), "--data", str(small_data), *QUICK]
    process = start(2, *flags, "--shard", "--out", str(tmp_path / "2"))
    train_to_the_end(*flags, "--out", str(tmp_path / "1"))
    finish(process)
    one, two = logged(tmp_path / "1"), logged(tmp_path / "2")
    assert len(one) == len(two) > 1
    assert_same_steps(one, two)
    for name in ("model/model.safetensors", f"checkpoint/step-{len(one):08d}.safetensors"):
        left, right = (load_file(tmp_path / run / name) for run in "12")
        assert left.keys() == right.keys()
        assert {k: t.shape for k, t in left.items()} == {k: t.shape for k, t in right.items()}
    before = [json.loads((tmp_path / run / "run.json").read_text())["before"] for run in "12"]
    assert before[0] == before[1]


@pytest.mark.slow
def test_a_run_of_shards_goes_on_where_it_was_stopped(
    small_model, small_data, tmp_path: Path
) -> None:
    flags = ["--mode", "finetune", "--model", str(small_model), "--data", str(small_data), *QUICK]
    flags += ["--batch-size", "3", "--epochs", "12", "--shard"]
    finish(start(2, *flags, "--out", str(tmp_path / "whole")))
    stop_after_a_step(start(2, *flags, "--out", str(tmp_path / "cut")))
    finish(start(2, "--resume", str(tmp_path / "cut"), "--shard"))
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    whole, cut = (tmp_path / name / "model/model.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


LEFT_OVER = """
import os
from mingpt_prefix.cli.train_command import main
code = main()
names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
left = sorted(name.strip() for name in names if "gloo" in name)
print(f"rank {os.environ['RANK']} left", *left, flush=True)
raise SystemExit(code)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed in /proc")
@pytest.mark.parametrize("mode", [["prefix"], ["lora"], ["finetune", "--shard"]], ids=" ".join)
def test_no_thread_of_the_group_outlives_a_run(
    mode, small_model, small_data, tmp_path: Path
) -> None:
    script = tmp_path / "left_over.py"
    script.write_text(LEFT_OVER)
    flags = ["--mode", *mode, "--model", str(small_model), "--data", str(small_data), *QUICK]
    flags += ["--max-steps", "2", "--out", str(tmp_path / "run")]
    said = finish(start_training(2, *flags, script=script, stdout=subprocess.PIPE)).splitlines()
    assert sorted(line for line in said if " left" in line) == ["rank 0 left", "rank 1 left"]


@pytest.mark.parametrize(
    ("ranks", "flags", "said"),
    [
        (1, ["--mode", "finetune"], "--shard is for several processes"),
        pytest.param(2, ["--mode", "prefix"], "--shard is for all weights", marks=pytest.mark.slow),
    ],
)
def test_shards_of_what_is_not_cut_up(ranks, flags, said, small_model, small_data) -> None:
    flags = [*flags, "--model", str(small_model), "--data", str(small_data), "--shard"]
    process = start(ranks, *flags, "--device", "cpu")
    complaints = process.communicate(timeout=100)[1]
    assert process.returncode != 0 and said in complaints


def test_shares() -> None:
    parts = [World(rank, 3).share(range(8)) for rank in range(3)]
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert ALONE.share("ab") == ["a", "b"] and ALONE.is_main and ALONE.largest(3) == 3
