"""The console command: its programs, their help, near spellings, repeated runs, and scores."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mingpt_prefix import __main__ as program
from mingpt_prefix import __version__
from mingpt_prefix.checkpoints.run_folder import read_run
from mingpt_prefix.cli import score, train_command
from mingpt_prefix.cli.flags import FOREIGN, groups_of
from mingpt_prefix.cli.recipes import RECIPES, TINY_RECIPES
from mingpt_prefix.cli.settings import repeat, resolve
from mingpt_prefix.cli.train_args import TrainArgs
from mingpt_prefix.config import to_json
from mingpt_prefix.errors import ConfigError
from mingpt_prefix.evaluation.sample_config import SampleConfig
from mingpt_prefix.metrics.__main__ import main as metrics_main

ROOT = Path(__file__).parents[2]
GROUPS = ("data", "prefix", "LoRA", "optimisation", "decoding", "machine")


def told(capsys, *flags: str) -> str:
    """What a program says on stdout before it ends."""
    try:
        assert program.main(flags) == 0
    except SystemExit as end:
        assert end.code == 0
    return capsys.readouterr().out


# Help


def test_the_command_lists_its_programs_and_tells_its_version(capsys) -> None:
    said = told(capsys)
    assert all(f"• {name} " in said for name in program.PROGRAMS)
    assert told(capsys, "--version") == f"mingpt-prefix {__version__}\n"
    assert program.main(["sing"]) == 2
    assert "unknown command 'sing'; there are train, sample, " in capsys.readouterr().err


@pytest.mark.parametrize("name", program.PROGRAMS)
def test_help_has_examples_on_lines_of_their_own_and_no_none(name: str, capsys) -> None:
    said = told(capsys, name, "--help")
    examples = [line for line in said.splitlines() if line.startswith("    mingpt-prefix")]
    assert examples and all(line.count("mingpt-prefix") == 1 for line in examples)
    assert "None" not in said


def test_every_flag_has_a_group_and_a_sentence() -> None:
    groups = [*groups_of(TrainArgs), *groups_of(SampleConfig)]
    assert set(GROUPS) <= {title for title, _ in groups}
    assert all(flag.help for _, flags in groups for flag in flags)


def test_defaults_are_the_recipes(capsys) -> None:
    said = " ".join(told(capsys, "train", "--help").replace("│", " ").split())
    own, tiny = (f"{r['prefix']['lr']:g}" for r in (RECIPES, TINY_RECIPES))
    assert f"by recipe: gpt2 {own.replace('e-0', 'e-')}, tiny {tiny};" in said
    for flag in ("prefix_length", "epochs", "batch_size"):
        both = RECIPES["prefix"][flag], TINY_RECIPES["prefix"][flag]
        assert "by recipe: gpt2 {}, tiny {}".format(*both) in said


def test_help_brings_no_torch() -> None:
    for name in ("train", "sample", "score", "serve"):
        code = f"""
import sys
from mingpt_prefix.__main__ import main
try:
    main(["{name}", "--help"])
except SystemExit:
    assert "torch" not in sys.modules
"""
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("train --learning-rat 3", "--lr"),
        ("train --num_virtual_tokens=5", "--prefix-length"),
        ("train --lora-r 8 --outt x", "--lora-rank and --out"),
        ("sample --num-beams 5 --table x", "--beams"),
        ("serve --prot 80", "--port"),
        ("train --text-column x", "--text-field"),
        ("train prefix", "--mode prefix"),
        ("smaple", "sample"),
    ],
)
def test_a_flag_that_may_be_meant_is_named(command: str, meant: str, capsys) -> None:
    assert program.main(command.split()) == 2
    said = capsys.readouterr().err
    assert said.endswith(f"; did you mean {meant}?\n") and said.count("\n") == 1


def test_foreign_names_are_not_ours_and_mean_flags_that_there_are() -> None:
    kinds = (TrainArgs, score.ScoreConfig)
    ours = {flag.option for kind in kinds for _, flags in groups_of(kind) for flag in flags}
    assert {f"--{name}" for name in FOREIGN.values()} <= ours
    assert not {f"--{name}" for name in FOREIGN} & ours


@pytest.mark.parametrize("name", ["export", "bank", "metrics", "call_training"])
def test_rooms_start_by_their_names_too(name: str) -> None:
    command = [sys.executable, "-m", f"mingpt_prefix.{name}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "usage: " in done.stdout


def test_bash_completes_flags(tmp_path: Path) -> None:
    file = tmp_path / "mingpt-prefix"
    command = (sys.executable, "-m", "mingpt_prefix", "--tyro-write-completion", "bash", str(file))
    subprocess.run(command, cwd=ROOT, check=True)
    text = file.read_text(encoding="utf-8")
    assert "--prefix-length" in text and "score" in text


# A run that is repeated


def saved(config, folder: Path) -> Path:
    file = folder / "another-name.json"
    file.write_text(json.dumps({"config": to_json(config), "result": None}), encoding="utf-8")
    return file


def test_a_run_is_repeated_but_for_flags(tmp_path: Path) -> None:
    first, _ = resolve(TrainArgs(model="tiny", device="cpu", batch_size=6, no_reparam=True))
    file = saved(first, tmp_path)
    again, line = repeat(TrainArgs(config=file))
    assert again == first and str(file) in line
    again, line = repeat(TrainArgs(config=file, seed=7, batch_size=2))
    assert (again.seed, again.batch_size, again.micro_batch_size) == (7, 2, 2)
    assert again.lr == first.lr and line.endswith(", except --batch-size, --seed.")
    with pytest.raises(ConfigError, match="--lora-rank is for"):
        repeat(TrainArgs(config=file, lora_rank=3))


def test_config_and_resume_exclude_each_other(tmp_path: Path, capsys) -> None:
    flags = ["--config", "a.json", "--resume", str(tmp_path), "--device", "cpu"]
    assert train_command.main(flags) == 2
    assert "exclude each other" in capsys.readouterr().err


# Scores


def test_a_trained_run_is_scored_and_its_split_decoded(
    tmp_path, small_model, small_data, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = f"train --model {small_model} --data {small_data} --max-steps 2 --out run --device cpu"
    assert program.main([*flags.split(), "--prefix-length", "2", "--evals", "1"]) == 0
    assert read_run(Path("run"))["result"] is not None
    assert "Next: mingpt-prefix sample --run run" in capsys.readouterr().out
    by = ["--run", "run", "--model", str(small_model), "--max-new-tokens", "5"]
    of = ["--data", str(small_data), "--beams", "2"]
    assert program.main(["score", *by, *of]) == 0
    said = capsys.readouterr()
    assert "a file this run was trained on; --split dev scores the rows held out" in said.err
    folder = Path("run") / f"{small_data.stem}-test"
    found = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert found["tables"] == 40 and found["decoding"]["beams"] == 2
    assert f"bleu    {found['scores']['bleu']:.4f}\n" in said.out and str(folder) in said.err
    # The two files are those that the official script reads, and score the same.
    files = [str(folder / name) for name in ("outputs.txt", "references.txt")]
    assert metrics_main([*files, "--json", "--metrics", "bleu", "nist"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == {name: found["scores"][name] for name in ("bleu", "nist")}
    assert program.main(["sample", *by, *of]) == 0
    assert capsys.readouterr().out == (folder / "outputs.txt").read_text(encoding="utf-8")


@pytest.fixture
def books(tmp_path, small_model, monkeypatch, capsys) -> list[str]:
    """The flags that name a run on columns of its own, in the current folder."""
    monkeypatch.chdir(tmp_path)
    rows = [f"Book {n},{1900 + n},Book {n} is a book." for n in range(8)]
    Path("books.csv").write_text("\n".join(["title,year,blurb", *rows]), encoding="utf-8")
    flags = f"train --model {small_model} --data books.csv --text-field blurb --max-steps 1"
    flags += " --input-template {title} --prefix-length 2 --evals 1 --device cpu --out run"
    assert program.main(flags.split()) == 0
    capsys.readouterr()
    return ["--run", "run", "--model", str(small_model), "--max-new-tokens", "3", "--beams", "1"]


def test_rows_are_read_as_in_training(books: list[str], capsys) -> None:
    Path("more.csv").write_text("title,year,blurb\nEmma,,It is a book.\n", encoding="utf-8")
    assert program.main(["score", *books, "--data", "more.csv"]) == 0
    assert "trained on" not in capsys.readouterr().err
    references = Path("run/more-test/references.txt")
    assert references.read_text(encoding="utf-8") == "It is a book.\n"
    assert program.main(["sample", *books, "--data", "more.csv"]) == 0
    written = capsys.readouterr().out
    # New rows have no sentences yet, and the template needs no year.
    Path("new.csv").write_text("title;year\nEmma;\n;1815\n", encoding="utf-8")
    assert program.main(["sample", *books, "--input", "new.csv"]) == 1
    said = capsys.readouterr()
    assert said.out == f"{written}\n" and "line 3: 'title' is missing or empty" in said.err
    assert program.main(["score", *books, "--data", "more.csv", "--text-field", "year"]) == 2
    assert "line 2: the text is empty" in capsys.readouterr().err


def test_what_score_and_sample_refuse(capsys) -> None:
    for flags, what in (
        (("score",), "--data is needed"),
        (("score", "--data", "sample", "--beams", "0"), "beams must be positive"),
        (("sample", "--table", "a[b]", "--split", "dev"), "--split and --text-field need --data"),
        (("sample", "--table", "a[b]", "--data", "e2e"), "and only one"),
    ):
        assert program.main(flags) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"mingpt-prefix {flags[0]}: ") and what in said
