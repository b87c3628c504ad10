"""train.py from its flags to its files: whole runs, interrupted runs, bad input."""

import json
import math
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import logged

import train
from mingpt_prefix.adapters.prefix_file import read_prefix
from mingpt_prefix.checkpoints.pretrained import fingerprint, load_model
from mingpt_prefix.checkpoints.run_folder import kept_by
from mingpt_prefix.cli.plots import save_loss_curve
from mingpt_prefix.errors import CheckpointError

ROOT = Path(train.__file__).parent
QUICK = ["--device", "cpu", "--epochs", "2", "--batch-size", "8", "--evals", "2"]


@pytest.fixture
def flags(small_model: Path, small_data: Path, tmp_path: Path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["--model", str(small_model), "--data", str(small_data), *QUICK]


def failure(capsys, argv: list[str]) -> str:
    """The one line that a run which cannot be is refused with."""
    capsys.readouterr()
    assert train.main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("train.py: ") and lines[0].isprintable()
    return lines[0]


def test_a_prefix_run(flags, small_model: Path, tmp_path: Path, capsys) -> None:
    base = (small_model / "model.safetensors").read_bytes()
    assert train.main([*flags, "--mode", "prefix", "--prefix-length", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Training a prefix for {small_model} on ")
    for part in ("as --model says", "Before training: dev BLEU", "After training: dev BLEU"):
        assert part in out
    run = tmp_path / "runs" / "prefix-small-1"
    assert f"python sample.py --run {run.relative_to(tmp_path)}" in out
    assert {path.name for path in run.iterdir()} == {
        "run.json", "log.jsonl", "loss.png", "checkpoint", "prefix.safetensors",
    }  # fmt: skip
    content = json.loads((run / "run.json").read_text())
    assert content["config"]["mode"] == "prefix" and content["config"]["prefix_length"] == 3
    assert content["result"]["steps"] == 10 and 0 <= content["result"]["dev_bleu"] <= 1
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 11))
    assert [line["step"] for line in log if "dev_loss" in line] == [5, 10]
    assert all(line["grad_norm"] > 0 and line["seconds"] > 0 for line in log)
    assert sum(line["tokens"] for line in log[:5]) == sum(line["tokens"] for line in log[5:]) > 500
    prefix, info = read_prefix(run / "prefix.safetensors")
    assert prefix.kv.shape == (2, 2, 3, 2, 16)
    assert info.fingerprint == load_model(small_model).fingerprint
    # Frozen means frozen, on the disk too; and nothing of this machine gets into the prefix file.
    assert (small_model / "model.safetensors").read_bytes() == base
    assert str(tmp_path) not in (run / "prefix.safetensors").read_bytes().decode("latin-1")


def test_rows_trained_directly(flags, tmp_path: Path) -> None:
    assert train.main([*flags, "--no-reparam", "--lr", "0.01", "--out", "direct"]) == 0
    info = read_prefix(tmp_path / "direct" / "prefix.safetensors")[1]
    assert info.training["reparam"] is False


@pytest.mark.parametrize("mode", ["finetune", "pretrain"])
def test_runs_that_train_the_model(mode: str, flags, small_model: Path, tmp_path, capsys) -> None:
    if mode == "pretrain":
        text = "".join(f"Document {n} says {n}.\nIt ends.\n<|endoftext|>\n" for n in range(400))
        (tmp_path / "text.txt").write_text(text)
        flags = ["--model", str(small_model), "--data", "text.txt", *QUICK, "--block-size", "32"]
    assert train.main([*flags, "--mode", mode, "--out", "here"]) == 0
    assert sorted(path.name for path in (tmp_path / "here" / "model").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    trained = load_model(tmp_path / "here" / "model")
    assert trained.config.tokenizer == "tiny"
    assert fingerprint(trained) != load_model(small_model).fingerprint
    result = json.loads((tmp_path / "here" / "run.json").read_text())["result"]
    assert ("bits_per_byte" if mode == "pretrain" else "dev_bleu") in result


KEPT = {
    "prefix": ["prefix.safetensors"],
    "lora": ["lora.safetensors"],
    "prefix+lora": ["lora.safetensors", "prefix.safetensors"],
    "finetune": ["model/model.safetensors"],
}


@pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, marks=[pytest.mark.slow] if "lora" in mode else []) for mode in KEPT],
)
def test_ctrl_c_saves_and_resume_ends_at_the_same_bytes(
    mode: str, flags, tmp_path: Path, capsys
) -> None:
    argv = [*flags, "--mode", mode, "--micro-batch-size", "3", "--epochs", "30"]
    assert train.main([*argv, "--out", "whole"]) == 0
    command = [sys.executable, str(ROOT / "train.py"), *argv, "--out", "cut"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    for line in process.stdout:
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130, rest
    assert "python train.py --resume cut" in rest
    saved = list((tmp_path / "cut" / "checkpoint").iterdir())
    assert 1 <= len(saved) <= 2
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["result"] is None
    refused = failure(capsys, ["--resume", "cut", "--lr", "0.5"])
    assert "--lr 0.5: the run has" in refused
    # A line that a crash left half-written, of a step that will be done again.
    with (tmp_path / "cut" / "log.jsonl").open("a") as file:
        file.write('{"step": 9999, "loss": 1.0, "lr": 0.1}\n{"step": 100')
    assert train.main(["--resume", "cut"]) == 0
    for name in KEPT[mode]:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert logged(tmp_path / "whole") == logged(tmp_path / "cut")
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "cut" / "log.jsonl").open()]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert "has finished" in failure(capsys, ["--resume", "cut"])


LONG = ["--epochs", "30", "--evals", "30"]


@pytest.fixture(scope="module")
def undisturbed(small_model: Path, small_data: Path, tmp_path_factory) -> bytes:
    """The prefix of a long run that nothing stops."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    flags = ["--model", str(small_model), "--data", str(small_data), *QUICK, *LONG]
    assert train.main([*flags, "--out", str(run)]) == 0
    return (run / "prefix.safetensors").read_bytes()


def until_begun(process: subprocess.Popen, folder: Path, terminal: int | None = None) -> None:
    """Wait until a step has been logged, and read what is said on a terminal meanwhile."""
    while process.poll() is None and not (folder / "log.jsonl").exists():
        if select.select([terminal] if terminal else [], [], [], 0.01)[0]:
            os.read(terminal, 1 << 16)


@pytest.fixture
def hang_ups() -> Iterator[None]:
    """Programs heed SIGHUP, even if nohup has started the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP")
@pytest.mark.parametrize("way", ["signal", "terminal", "terminal-of-stderr"])
def test_a_hang_up_saves_and_resume_ends_at_the_same_bytes(
    way: str, flags, undisturbed: bytes, tmp_path: Path, hang_ups
) -> None:
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    flags = [*flags, *LONG]
    command = [sys.executable, str(ROOT / "train.py"), *flags, "--out", "cut"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    log = (tmp_path / "said.txt").open("w")
    if way == "signal":
        process = subprocess.Popen(command, stdout=log, env=environment)
        until_begun(process, tmp_path / "cut")
        process.send_signal(signal.SIGHUP)
    else:
        ours, theirs = os.openpty()
        process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs if way == "terminal" else log,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        until_begun(process, tmp_path / "cut", ours)
        os.close(ours)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    if way != "terminal":
        assert "python train.py --resume cut" in (tmp_path / "said.txt").read_text()
    assert train.main(["--resume", "cut"]) == 0
    assert (tmp_path / "cut" / "prefix.safetensors").read_bytes() == undisturbed


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP")
def test_a_hang_up_that_is_ignored_stops_nothing(flags, tmp_path: Path) -> None:
    command = ["nohup", sys.executable, str(ROOT / "train.py"), *flags, "--epochs", "20"]
    with (tmp_path / "said.txt").open("w") as log:
        process = subprocess.Popen([*command, "--out", "run"], stdout=log, stderr=log)
    until_begun(process, tmp_path / "run")
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 0
    assert "Saved " in (tmp_path / "said.txt").read_text()


def test_the_same_run_twice_gives_the_same_prefix_file(flags, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert train.main([*flags, "--out", name, "--seed", "3"]) == 0
    one, two = ((tmp_path / name / "prefix.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("name", ["my run", "it's $HOME; `ls`", "runs/a&b (1)"])
def test_printed_commands_can_be_pasted(
    name: str, flags, small_model: Path, tmp_path: Path, capsys
) -> None:
    shutil.copytree(small_model, tmp_path / "my model")
    flags = ["--model", "my model", *flags[2:], "--max-steps", "1", "--out", name]
    assert train.main(flags) == 0
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("Next: ")
    words = ["bash", "-c", f'for word in {command}; do printf "%s\\0" "$word"; done']
    given = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\0")
    assert given[:7] == ["python", "sample.py", "--run", name, "--model", "my model", "--table"]
    content = json.loads((tmp_path / name / "run.json").read_text())
    (tmp_path / name / "run.json").write_text(json.dumps({**content, "result": None}))
    with pytest.raises(CheckpointError) as caught:
        kept_by(Path(name))
    command = str(caught.value).partition("to continue: ")[2]
    assert shlex.split(command) == ["python", "train.py", "--resume", name]


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["--model", "gpt3"], "unknown model 'gpt3'; known: tiny, gpt2, "),
        (["--model", "no/such/folder"], "unknown model"),
        (["--data", "no.csv"], "no such file or folder (e2e and sample need none)"),
        (["--lr", "0"], "lr must be positive"),
        (["--lr", "nan"], "lr must be positive"),
        (["--lr", "inf"], "lr must be finite"),
        (["--epochs", "-1"], "epochs must be positive"),
        (["--batch-size", "0"], "batch-size must be positive"),
        (["--prefix-length", "0"], "prefix-length must be positive"),
        (["--prefix-length", "-5"], "prefix-length must be positive, not -5"),
        (["--prefix-length", "150"], "150 prefix rows and the longest sequence"),
        (["--prefix-length", "160"], "160"),
        (["--seed", "-1"], "seed must not be negative"),
        (["--seed", "1" + "0" * 30], "seed"),
        (["--mode", "sing"], "sing"),
        (["--no-such-flag"], "no-such-flag"),
        (["--epochs", "many"], "many"),
        (["--mode", "finetune", "--prefix-length", "5"], "--prefix-length"),
        (["--mode", "pretrain", "--block-size", "32"], "the name must end in .txt"),
        (["--device", "cuda"], "cuda"),
        (["--resume", "nowhere"], "nowhere"),
    ],
)
def test_bad_flags(argv: list[str], what: str, flags, capsys, tmp_path: Path) -> None:
    if argv == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert what in failure(capsys, [*flags, *argv] if "--resume" not in argv else argv)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "no examples"),
        (
            b"table,text\nname[A],A.\n",
            "the columns are table, text; name the one with the sentences by --text-field",
        ),
        (b"mr,ref\nname[,A.\n", "line 2"),
        (b"mr,ref\nname[A],caf\xe9\n", "not UTF-8"),
    ],
)
def test_bad_data(content: bytes, what: str, flags, capsys, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes(content)
    assert what in failure(capsys, [*flags, "--data", "bad.csv"])


def test_an_out_folder_that_cannot_be_written(flags, capsys, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "file" in failure(capsys, [*flags, "--out", "file/run"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("not to be lost")
    assert "not empty" in failure(capsys, [*flags, "--out", "full"])


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(
    flags, capsys, tmp_path, monkeypatch
) -> None:
    argv = [*flags, "--mode", "finetune", "--epochs", "20", "--evals", "10", "--out", "run"]
    real, calls = torch.nn.utils.clip_grad_norm_, []

    def poisoned(parameters, limit: float) -> torch.Tensor:
        calls.append(limit)
        return real(parameters, limit) * (math.nan if len(calls) == 35 else 1.0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", poisoned)
    assert "step 35: the loss is" in failure(capsys, argv)
    monkeypatch.undo()
    checkpoints = sorted((tmp_path / "run" / "checkpoint").iterdir())
    assert [path.name for path in checkpoints][-1] == "step-00000030.safetensors"
    monkeypatch.chdir(tmp_path)
    assert train.main(["--resume", "run"]) == 0


def test_data_that_changed_is_refused(flags, capsys, tmp_path: Path, small_data: Path) -> None:
    (tmp_path / "mine.csv").write_bytes(small_data.read_bytes())
    argv = [*flags, "--data", "mine.csv", "--out", "run"]
    assert train.main(argv) == 0
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**content, "result": None}))
    (tmp_path / "mine.csv").write_bytes(small_data.read_bytes().replace(b"Inn 7 ", b"Inn 8 "))
    assert "not what the run began with" in failure(capsys, ["--resume", "run"])


def test_the_loss_curve_needs_only_the_log(tmp_path: Path) -> None:
    log = [{"step": n, "loss": 5 / n, "lr": 0.1} for n in range(1, 4)]
    assert save_loss_curve(log, tmp_path / "a.png", "a run")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
