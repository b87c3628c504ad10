"""Streams and pictures that are not a terminal's: closed ones, a notebook's, a thread's, and what
is written to files and pipes."""

import contextlib
import io
import os
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from serving import FLAGS, make_files, serving

import train

ROOT = Path(train.__file__).parent
TABLE = "name[The Mill], eatType[pub]"
SAMPLE_FLAGS = ("--model", "tiny", "--beams", "1", "--max-new-tokens", "4", "--device", "cpu")


@pytest.fixture
def flags(small_model: Path, small_data: Path, tmp_path: Path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    flags = ["--model", str(small_model), "--data", str(small_data), "--device", "cpu"]
    return [*flags, "--max-steps", "2", "--out", "run"]


def call(script: str, *flags: str, closed: str = "", **changes: str) -> subprocess.CompletedProcess:
    """A script as a process; `closed` as a shell has it, and `changes` of the environment."""
    command = ["sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, str(ROOT / script), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **changes}
    return subprocess.run(command, capture_output=True, env=environment, timeout=300)


def assert_ended(folder: Path) -> None:
    """A run that has come to its end, with all its files whole."""
    assert '"result": {' in (folder / "run.json").read_text()
    assert (folder / "prefix.safetensors").exists() and not list(folder.rglob("*.part"))


# Pictures


def test_a_backend_that_is_not_there(flags, tmp_path: Path) -> None:
    done = call("train.py", *flags, MPLBACKEND="nonsense")
    assert done.returncode == 0 and b"Saved run/prefix.safetensors" in done.stdout
    assert b"loss.png" not in done.stdout and not (tmp_path / "run" / "loss.png").exists()
    assert done.stderr.startswith(b"loss.png cannot be drawn: ValueError: Key backend: 'nonsense'")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "trouble",
    [
        "os.environ['MPLBACKEND'] = 'nonsense'",
        "(folder / 'loss.png').mkdir()",
        "import matplotlib.figure; matplotlib.figure.Figure = None",
        "import matplotlib; matplotlib.rcParams['text.usetex'] = True; os.environ['PATH'] = ''",
    ],
)
def test_a_picture_that_cannot_be_drawn(trouble: str, tmp_path: Path) -> None:
    code = f"""
import os, pathlib
from mingpt_prefix.cli.plots import save_loss_curve
folder = pathlib.Path({str(tmp_path)!r})
{trouble}
print(save_loss_curve([{{"step": 1, "loss": 2.0, "lr": 1.0}}], folder / "loss.png", "a run"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n" and done.stderr.startswith("loss.png cannot be drawn: ")
    assert done.stderr.count("\n") == 1 and not list(tmp_path.glob("*.part"))


# Streams that are closed, or no files


def test_training_with_closed_streams(flags, tmp_path: Path) -> None:
    assert call("train.py", *flags, closed="<&- >&- 2>&-").returncode == 0
    assert_ended(tmp_path / "run")


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_sampling_with_closed_streams(closed: str) -> None:
    done = call("sample.py", "--table", TABLE, *SAMPLE_FLAGS, closed=closed)
    assert done.returncode == 0
    assert done.stdout.count(b"\n") == (closed == "2>&-")  # the sentence alone
    assert done.stderr.count(b"\n") == (closed == ">&-")
    done = call("sample.py", "--table", "name[", closed=closed)
    assert (done.returncode, done.stdout) == (2, b"")


def test_stdin_that_is_closed() -> None:
    done = call("sample.py", "--input", "-", *SAMPLE_FLAGS, closed="<&-")
    assert done.returncode == 2 and done.stderr == b"sample.py: -: no tables in it\n"


class Log:
    """What some programs put in a stream's place."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_streams_that_are_no_files(flags, tmp_path: Path) -> None:
    with contextlib.redirect_stdout(Log()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        assert train.main(flags) == 0
        assert train.main(flags) == 2
    assert "Saved run/prefix.safetensors" in out.text
    assert err.getvalue() == "train.py: run: not empty; name a new --out, or --resume it\n"


def test_a_stream_that_the_caller_closed(flags, tmp_path: Path) -> None:
    out = io.StringIO()
    out.close()
    with contextlib.redirect_stdout(out):
        assert train.main(flags) == 0
    assert_ended(tmp_path / "run")


# What is written to files, pipes and terminals

PRICE = "name[The Mill], eatType[pub], priceRange[£20-25]"
SPOKEN = "from mingpt_prefix.cli import terminal; "
SPOKEN += "text = '\\u00a3 \\u2013 \\u6771\\u4eac'; "
SPOKEN += "terminal.run_script('x', lambda: terminal.say(text) or terminal.fail(text))"


def test_sentences_in_a_file_are_utf8(tmp_path: Path) -> None:
    (tmp_path / "refs.txt").write_text("It costs £20-25.\n", encoding="utf-8")
    flags = (*SAMPLE_FLAGS[:4], "--device", "cpu", "--max-new-tokens", "40")
    said = call("sample.py", "--table", PRICE, *flags, PYTHONIOENCODING="cp1252").stdout
    assert "£" in said.decode()
    (tmp_path / "said.txt").write_bytes(said)
    metrics = ["-m", "mingpt_prefix.metrics", "said.txt", "refs.txt", "--metrics", "bleu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *metrics], cwd=tmp_path, check=True, env=environment)


NO_UTF8 = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "changes",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "utf-16"},
        {"PYTHONIOENCODING": "shift_jis:strict"},
        {"LC_ALL": "C", **NO_UTF8},
        {"LC_ALL": "POSIX", "PYTHONIOENCODING": ":strict", **NO_UTF8},
    ],
)
def test_files_and_pipes_are_utf8(changes: dict[str, str], tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", SPOKEN],
            cwd=ROOT, stdout=out, stderr=subprocess.PIPE, env={**os.environ, **changes},
        )  # fmt: skip
    assert (tmp_path / "out").read_bytes().decode() == f"£ – 東京{os.linesep}"
    assert done.stderr.decode() == f"x: £ – 東京{os.linesep}"


def test_a_terminal_keeps_its_encoding() -> None:
    ours, theirs = pytest.importorskip("pty").openpty()
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-c", SPOKEN]
    subprocess.run(command, cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE, env=environment)
    os.close(theirs)
    assert os.read(ours, 100).rstrip() == b"\xa3 \\u2013 \\u6771\\u4eac"
    os.close(ours)


# Notebooks and threads


def test_a_notebook(flags, tmp_path: Path) -> None:
    pytest.importorskip("ipykernel")
    start_new_kernel = pytest.importorskip("jupyter_client.manager").start_new_kernel
    said = {"stdout": "", "stderr": ""}

    def hear(message: dict) -> None:
        content = message["content"]
        if message["msg_type"] == "stream":
            said[content["name"]] += content["text"]
        assert message["msg_type"] != "error", content

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    manager, client = start_new_kernel(cwd=str(tmp_path), env=environment)
    try:
        for code in (
            f"%run {ROOT / 'train.py'} {' '.join(flags)}",
            "import sample",
            f"assert sample.main(['--table', '{TABLE}', *{SAMPLE_FLAGS}]) == 0",
            "assert sample.main(['--table', 'name[']) == 2",
        ):
            client.execute_interactive(code, timeout=300, output_hook=hear)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert (
        "Saved run/prefix.safetensors, with log.jsonl and loss.png in the same folder."
        in said["stdout"]
    )
    assert "Using the prefix" in said["stderr"]
    assert "sample.py: ']' is missing" in said["stderr"]


def test_training_in_a_thread(flags, tmp_path: Path) -> None:
    codes = []
    thread = threading.Thread(target=lambda: codes.append(train.main(flags)))
    thread.start()
    thread.join()
    assert codes == [0]
    assert_ended(tmp_path / "run")


def test_serving_in_a_thread(tmp_path: Path) -> None:
    changes = "import threading; threading.Thread(target=sample.main).start()"
    changes += "; threading.Event().wait()"
    with serving(make_files(tmp_path), *FLAGS, changes=changes) as (address, _):
        assert urllib.request.urlopen(address, timeout=60).status == 200
