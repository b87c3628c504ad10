"""sample.py: what it prints, what it chooses by itself, and what it says of bad input.

Most tests call `main` in this process; a few start the script as a user does.
"""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mingpt_prefix import tiny
from mingpt_prefix.adapters.prefix_file import PrefixInfo, load_prefix, save_prefix
from mingpt_prefix.checkpoints.pretrained import fingerprint, load_model, save_model
from mingpt_prefix.checkpoints.run_folder import newest_finished, read_run
from mingpt_prefix.cli import sample as program
from mingpt_prefix.cli.terminal import INTERRUPTED, PIPE_CLOSED
from mingpt_prefix.config import ModelConfig
from mingpt_prefix.data.encoding import encode_prompt
from mingpt_prefix.data.tables import TEXT_FORMAT, parse_table
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.errors import CheckpointError
from mingpt_prefix.evaluation.table_to_text import one_line
from mingpt_prefix.generation.decoding import generate
from mingpt_prefix.model import GPT2

ROOT = Path(__file__).parents[2]
TABLE = "name[The Mill], eatType[pub]"
CONFIG = ModelConfig(1, 2, 32, 4096, n_positions=96, eos_token_id=4095, tokenizer="tiny")
INFO = PrefixInfo("", "0" * 64, 3, TEXT_FORMAT, "prefix", {})


def save_random_model(folder: Path, seed: int) -> str:
    """A random model whose sentences vary; returns its fingerprint."""
    model = GPT2(CONFIG)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3, generator=generator)
    save_model(model, folder)
    return fingerprint(model)


def save_random_prefix(path: Path, digest: str, seed: int = 0, **info) -> None:
    generator = torch.Generator().manual_seed(seed)
    kv = torch.randn(1, 2, 3, 2, 16, generator=generator)
    save_prefix(path, kv, dataclasses.replace(INFO, fingerprint=digest, **info))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model, other: two model folders; prefix.safetensors: for the first."""
    folder = tmp_path_factory.mktemp("made")
    digest = save_random_model(folder / "model", 0)
    save_random_model(folder / "other", 1)
    save_random_prefix(folder / "prefix.safetensors", digest)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder of its own with those files, and nothing embedded in the package."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    load_tokenizer("tiny")
    monkeypatch.setattr(tiny, "MODEL", tmp_path / "embedded" / "model")
    monkeypatch.setattr("mingpt_prefix.tiny.PREFIX", tmp_path / "embedded" / "prefix")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(sample, place, capsys):
    """main(flags) -> (exit code, lines of stdout, lines of stderr)."""

    def run(*flags: str) -> tuple[int, list[str], list[str]]:
        code = sample.main(
            [*flags, *([] if "--max-new-tokens" in flags else ["--max-new-tokens", "8"])]
        )
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


ON_PREFIX = ("--prefix", "prefix.safetensors", "--model", "model")


def expected_text(place: Path, table: str, beams: int = 5, **rules) -> str:
    model = load_model(place / "model", "cpu")
    tokenizer = load_tokenizer("tiny")
    prompt = encode_prompt(tokenizer, parse_table(table))
    kv = load_prefix(place / "prefix.safetensors")
    return one_line(
        tokenizer.decode(generate(model, [prompt], kv, max_new_tokens=8, beams=beams, **rules)[0])
    )


# What is printed


def test_one_table(call, place) -> None:
    code, out, err = call("--table", TABLE, *ON_PREFIX)
    assert code == 0 and out == [expected_text(place, TABLE)] and out[0]
    said = "prefix.safetensors on model, on cpu (float32, reference attention)"
    assert len(err) == 1 and said in err[0]
    assert call("--table", '{"name": "The Mill", "eatType": "pub"}', *ON_PREFIX)[1] == out
    beams = call("--table", TABLE, *ON_PREFIX, "--beams", "3", "--length-penalty", "0.5")[1]
    assert beams == [expected_text(place, TABLE, beams=3, length_penalty=0.5)]


def test_sampling_by_seed(call) -> None:
    def sentence(seed: int) -> list[str]:
        flags = ("--temperature", "2", "--top-k", "50", "--top-p", "0.9", "--seed", str(seed))
        return call("--table", TABLE, *ON_PREFIX, *flags)[1]

    assert sentence(1) == sentence(1) != sentence(2)


def test_several_sentences_a_table(call, place) -> None:
    place.joinpath("tables").write_text(f"{TABLE}\nname[\na[b]", encoding="utf-8")
    flags = ("--input", "tables", *ON_PREFIX, "--beams", "5", "--num-return-sequences", "3")
    code, out, _ = call(*flags)
    assert code == 1 and [bool(line) for line in out] == [True] * 3 + [False] * 3 + [True] * 3
    assert out[0] == expected_text(place, TABLE, beams=5) and len(set(out[:3])) == 3
    scored = [line.split("\t") for line in call(*flags, "--scores")[1]]
    assert [fields[-1] for fields in scored] == out and scored[3:6] == [[""]] * 3
    scores = [float(fields[0]) for fields in scored[:3]]
    assert 0 > scores[0] >= scores[1] >= scores[2]
    one = call("--input", "tables", *ON_PREFIX, "--beams", "5", "--scores")[1]
    assert one == ["\t".join(scored[0]), "", "\t".join(scored[6])]


def test_flags_that_ban(call, place) -> None:
    bans = {"no_repeat_ngram_size": 1, "min_new_tokens": 8}
    flags = ("--no-repeat-ngram-size", "1", "--min-new-tokens", "8")
    banned = call("--table", TABLE, *ON_PREFIX, *flags)[1]
    assert banned == [expected_text(place, TABLE, **bans)] != [expected_text(place, TABLE)]


def test_many_tables_and_bad_ones_among_them(call, place) -> None:
    lines = [TABLE, "", '{"table": {"name": "The Mill"}}', "name[", f"area[{'far ' * 120}]", "a[b]"]
    place.joinpath("tables").write_text("\n".join(lines), encoding="utf-8")
    code, out, err = call("--input", "tables", *ON_PREFIX)
    assert code == 1 and [bool(line) for line in out] == [True, False, True, False, False, True]
    assert out[2] == call("--table", "name[The Mill]", *ON_PREFIX)[1][0]
    starts = [line.partition(": ")[2].partition(":")[0] for line in err[1:]]
    assert starts == ["line 2", "line 4", "line 5"] and "the model has room for 92" in err[3]


def test_stdin_of_bytes_that_are_not_utf8(call, monkeypatch) -> None:
    data = b"\xef\xbb\xbf" + TABLE.encode() + b"\r\n\xff[x]\n" + b"x" * 200_000 + b"\na[b]\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    code, out, err = call("--input", "-", *ON_PREFIX)
    assert code == 1 and [bool(line) for line in out] == [True, False, False, True]
    assert "line 3: the table is longer than 8,000 characters" in err[2]


def test_chunks_are_as_one(call, place, monkeypatch) -> None:
    place.joinpath("tables").write_text("\n".join([TABLE, "a[b]"] * 6), encoding="utf-8")
    flags = ("--input", "tables", *ON_PREFIX, "--temperature", "2")
    _, out, _ = call(*flags)
    monkeypatch.setattr(program, "CHUNK", 5)
    assert call(*flags)[1] == out
    assert len(set(out)) > 6  # equal tables get sentences of their own


def test_one_line() -> None:
    assert (
        one_line("  The\tMill \n\n is\x00a\x1b[31m pub\u2028.\x9b ") == "The Mill is a [31m pub ."
    )


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم",  # Persian, with a non-joiner
        "a family: 👩\u200d👩\u200d👧",
        "Zeit\u00adung",  # a soft hyphen
        "שלום\u200f (\u200eThe Mill\u200e)",  # marks of direction
        "क\u094d\u200dष, \u2066A\u2069 \U000e0067",
        "❤\ufe0f",
    ],
)
def test_one_line_leaves_what_was_written(text: str) -> None:
    assert one_line(f" {text}\n") == text


# What is chosen


def make_run(root: Path, name: str, mode: str, result: object, age: int) -> Path:
    folder = root / "runs" / name
    folder.mkdir(parents=True)
    content = {"config": {"mode": mode}, "result": result}
    folder.joinpath("run.json").write_text(json.dumps(content), encoding="utf-8")
    os.utime(folder / "run.json", (1e9 - age, 1e9 - age))
    return folder


def embed(place: Path) -> None:
    """The model as the embedded one, with a prefix shipped beside it."""
    shutil.copytree(place / "model", place / "embedded" / "model")
    digest = load_model("tiny", "cpu").fingerprint
    save_random_prefix(place / "embedded" / "prefix", digest, seed=7, base="tiny")


def test_the_embedded_model_where_there_is_no_run(call, place) -> None:
    embed(place)
    code, out, err = call("--table", TABLE)
    assert code == 0 and out[0] and "the shipped prefix (no finished run under runs/)" in err[0]
    assert "on tiny" in err[0]


def test_the_newest_finished_run(call, place) -> None:
    embed(place)
    digest = load_model("tiny", "cpu").fingerprint
    old = make_run(place, "old", "prefix", {"bleu": 1.0}, age=20)
    save_random_prefix(old / "prefix.safetensors", digest, seed=1, base="tiny")
    new = make_run(place, "new", "finetune", {"bleu": 1.0}, age=10)
    shutil.copytree(place / "other", new / "model")
    make_run(place, "unfinished", "prefix", None, age=0)
    place.joinpath("runs", "stray").mkdir()
    place.joinpath("runs", "new2").mkdir()
    place.joinpath("runs", "new2", "run.json").write_text("{", encoding="utf-8")

    code, by_newest, err = call("--table", TABLE)
    assert code == 0 and "the model of runs/new (the newest finished run)" in err[0]
    assert call("--table", TABLE, "--run", "runs/new")[1] == by_newest
    code, by_old, err = call("--table", TABLE, "--run", "runs/old")
    assert code == 0 and by_old != by_newest and "the prefix of runs/old on tiny" in err[0]
    # The newest prefix that was made for the model named.
    assert call("--table", TABLE, "--model", "tiny")[1] == by_old
    assert "other without a prefix" in call("--table", TABLE, "--model", "other")[2][0]


def test_a_run_on_a_folder_needs_that_folder(call, place) -> None:
    run = make_run(place, "mine", "prefix", {}, age=0)
    shutil.copy(place / "prefix.safetensors", run)
    code, out, err = call("--table", TABLE)
    assert (
        code == 2 and out == [] and "on the hub: name that with --model" in err[0] and len(err) == 1
    )
    code, out, _ = call("--table", TABLE, "--run", "runs/mine", "--model", "model")
    assert code == 0 and out == [expected_text(place, TABLE)]


def test_run_folders(tmp_path: Path) -> None:
    assert newest_finished(tmp_path / "absent") is None
    make_run(tmp_path, "a", "prefix", None, age=0)
    assert newest_finished(tmp_path / "runs") is None
    b = make_run(tmp_path, "b", "prefix", {"bleu": 0.5}, age=5)
    assert newest_finished(tmp_path / "runs") == b
    assert read_run(b)["result"] == {"bleu": 0.5}
    bad = ["", "{", "[]", "{}", '{"config": 3}', "[" * 100_000, '{"config": {}}' + " " * 2**20]
    for content in bad:
        b.joinpath("run.json").write_text(content, encoding="utf-8")
        with pytest.raises(CheckpointError, match="run.json: ") as caught:
            read_run(b)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


# Bad input: one line on stderr, exit code 2


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ("name", "'[' is missing"),
        ("name[", "']' is missing"),
        ("name[]", "is empty"),
        ("", "the table is empty"),
        ("   ", "the table is empty"),
        ("name[a[b]]", "'[' inside a value"),
        ("name[a], name[b]", "'name' is repeated"),
        ("name[a\x07b]", "control character"),
        ("name[a\nb]", "control character"),
        ("name[" + "x" * 10_000 + "]", "longer than 8,000 characters"),
        ("name[" + "café " * 200 + "]", "the model has room for 92"),
        ('{"name": ', "not valid JSON"),
        ('{"name": ["a"]}', "a value must be text or a number"),
    ],
)
def test_bad_tables(call, table: str, what: str) -> None:
    code, out, err = call("--table", table, *ON_PREFIX)
    errors = [line for line in err if line.startswith("sample.py: ")]
    assert (code, out, len(errors)) == (2, [], 1) and len(err) <= 2
    assert what in errors[0]


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ((), "one of --table, --input, --data, --prompt and --prompts is"),
        (
            ("--table", TABLE, "--input", "-"),
            "one of --table, --input, --data, --prompt and --prompts is",
        ),
        (("--table", TABLE, "--run", "x", "--prefix", "y"), "--run and --prefix exclude"),
        (("--table", TABLE, "--frobnicate"), "--frobnicate"),
        (("--table",), "--table: a value is missing"),
        (("--table", "name[The", "Mill]"), "unknown arguments: Mill]; quote a table: --table "),
        (("--table", TABLE, "--beams", "two"), "--beams: 'two' is not a whole number"),
        (("--table", TABLE, "--beams", "0"), "beams must be positive, not 0"),
        (("--table", TABLE, "--beams", "-5"), "beams must be positive, not -5"),
        (("--table", TABLE, "--max-new-tokens", "-1"), "max-new-tokens must be positive, not -1"),
        (("--table", TABLE, "--temperature", "-1"), "temperature must not be negative"),
        (
            ("--table", TABLE, "--beams", "3", "--length-penalty", "300"),
            "length-penalty must lie in",
        ),
        (("--table", TABLE, "--temperature", "nan"), "temperature must not be negative"),
        (("--table", TABLE, "--top-k", "-1"), "top-k must be positive"),
        (("--table", TABLE, "--top-p", "2"), "top-p must lie in (0, 1]"),
        (("--table", TABLE, "--beams", "2", "--top-k", "3"), "top-p need beams 1"),
        (
            ("--table", TABLE, "--beams", "1", "--num-return-sequences", "2"),
            "needs as many beams, or sampling",
        ),
        (("--table", TABLE, "--min-new-tokens", "9"), "must lie in [0, max-new-tokens]"),
        (("--table", TABLE, "--model", "gpt9"), "unknown model 'gpt9'"),
        (("--table", TABLE, "--model", ""), "unknown model ''"),
        (("--table", TABLE, "--model", "model", "--device", "abacus"), "device 'abacus'"),
        (("--table", TABLE, "--model", "model", "--dtype", "fp7"), "unknown dtype 'fp7'"),
        (("--table", TABLE, "--model", "model", "--attention", "x"), "unknown attention 'x'"),
        (("--table", TABLE, "--run", "absent"), "absent: no such run"),
        (("--table", TABLE, "--prefix", "absent"), "absent: "),
        (("--table", TABLE, "--prefix", "model"), "model: "),
        (
            ("--table", TABLE, "--prefix", "prefix.safetensors"),
            "on the hub: name that with --model",
        ),
        (("--table", TABLE, "--prefix", "prefix.safetensors", "--model", "other"), "was made for"),
        (("--input", "absent"), "absent: No such file"),
        (("--input", "model"), "model: Is a directory"),
        (("--input", os.devnull), "no tables in it"),
    ],
)
def test_bad_flags(call, flags: tuple[str, ...], what: str) -> None:
    code, out, err = call(*flags)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith("sample.py: ") and what in err[0]


def test_damaged_files(call, place) -> None:
    whole = place.joinpath("prefix.safetensors").read_bytes()
    swapped = whole.replace(b'\\"length\\":3', b'\\"length\\":4').replace(
        b'length\\": 3', b'length\\": 4'
    )
    assert swapped != whole
    for data in (whole[:-100], whole[:50], b"", b"\xff" * 64, swapped, whole + b"x"):
        place.joinpath("bad").write_bytes(data)
        code, out, err = call("--table", TABLE, "--prefix", "bad", "--model", "model")
        assert (code, out, len(err)) == (2, [], 1) and err[0].startswith("sample.py: bad: ")
    weights = place / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    code, out, err = call("--table", TABLE, *ON_PREFIX)
    assert (code, out, len(err)) == (2, [], 1) and "model.safetensors" in err[0]


def test_csv_of_tables(call, place) -> None:
    """E2E's testset.csv: a sentence for each row, an empty line for a bad one."""
    rows = [f'"{TABLE}"', f'"{TABLE}"', "name[A", '"name[B], food[Thai]"', "", ""]
    (place / "testset.csv").write_text("\r\n".join(["MR", *rows]), encoding="utf-8")
    code, out, err = call("--input", "testset.csv", *ON_PREFIX)
    assert (code, len(out)) == (1, 4) and out[0] == out[1] == expected_text(place, TABLE)
    assert [not line for line in out] == [False, False, True, False]
    assert [line for line in err if line.startswith("sample.py: ")] == [
        "sample.py: line 4: ']' is missing for the '[' at character 4, in 'name[A'"
    ]


def test_edited_weights_are_another_model(call, place) -> None:
    weights = place / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    code, out, err = call("--table", TABLE, *ON_PREFIX)
    assert (code, out, len(err)) == (2, [], 1) and "was made for" in err[0]


def test_models_and_prefixes_of_unknown_kinds(call, place) -> None:
    save_random_prefix(place / "new", load_model("model", "cpu").fingerprint, text_format="x\ny")
    code, _, err = call("--table", TABLE, "--prefix", "new", "--model", "model")
    assert code == 2 and r"unknown text format 'x\ny'" in err[-1]
    file = place / "model" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "mingpt_prefix_tokenizer": None}), encoding="utf-8")
    code, out, err = call("--table", TABLE, *ON_PREFIX)
    assert (code, out, len(err)) == (2, [], 1) and "tokenizer that is not known" in err[0]


def test_runs_that_cannot_be_used(call, place) -> None:
    make_run(place, "open", "prefix", None, age=0)
    assert "train.py --resume runs/open" in call("--table", TABLE, "--run", "runs/open")[2][0]
    make_run(place, "odd", "juggle\n", {}, age=0)
    assert r"unknown mode 'juggle\n'" in call("--table", TABLE, "--run", "runs/odd")[2][0]
    run = make_run(place, "tuned", "finetune", {}, age=0)
    assert "runs/tuned/model" in call("--table", TABLE, "--run", "runs/tuned")[2][0]
    shutil.copytree(place / "model", run / "model")
    flags = ("--table", TABLE, "--run", "runs/tuned", "--model", "model")
    assert call(*flags)[::2] == (
        2,
        ["sample.py: --model: runs/tuned is a finetune run, with a model of its own"],
    )


# As a process


def start(place: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "sample.py"), *flags, *ON_PREFIX, "--max-new-tokens", "4"]
    pipe = subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}

    def heed_interrupts() -> None:  # which a shell's background jobs are born ignoring
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command, cwd=place, stdin=pipe, stdout=pipe, stderr=pipe, env=environment,
        preexec_fn=heed_interrupts,
    )  # fmt: skip


def test_process_streams_chunk_by_chunk_and_ends_quietly(place, sample) -> None:
    with start(place, "--input", "-") as process:
        process.stdin.write(f"{TABLE}\n".encode() * (program.CHUNK + 1))
        process.stdin.flush()
        lines = [process.stdout.readline() for _ in range(program.CHUNK)]  # before the input ends
        assert all(line.strip() for line in lines)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == INTERRUPTED
        assert process.stderr.read().count(b"\n") == 1


def test_process_of_a_closed_pipe(place, sample) -> None:
    with start(place, "--input", "-") as process:
        process.stdin.write(f"{TABLE}\n".encode() * program.CHUNK)
        process.stdin.flush()
        assert process.stdout.readline().strip()
        process.stdout.close()
        process.stdin.write(f"{TABLE}\n".encode() * program.CHUNK)
        process.stdin.close()
        assert process.wait(60) == PIPE_CLOSED
        assert process.stderr.read().count(b"\n") == 1


def test_process_of_bad_input(place) -> None:
    with start(place, "--table", "name[") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, b"")
    assert err.decode().splitlines() == [
        "sample.py: ']' is missing for the '[' at character 4, in 'name['"
    ]
