"""What users are told: of a file in the place of another, an ended run, flags of another mode,
slots that training never saw, a training set without a dev set, a loss that rose."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

import train
from mingpt_prefix.bank.calls_file import Call, save_calls
from mingpt_prefix.checkpoints.pretrained import load_model
from mingpt_prefix.cli.progress import rise

TABLE = "name[Inn 3], eatType[pub]"


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_model: Path, small_data: Path) -> Path:
    """model/, small.csv, and a finished run of each mode: prefix, lora, both and tuned."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(small_model, folder / "model")
    shutil.copy(small_data, folder)
    flags = ["--model", str(folder / "model"), "--data", str(folder / "small.csv")]
    flags += ["--device", "cpu", "--max-steps", "2", "--batch-size", "4"]
    for name, mode in (("prefix", "prefix"), ("lora", "lora"), ("both", "prefix+lora")):
        assert train.main([*flags, "--mode", mode, "--out", str(folder / name)]) == 0
    assert train.main([*flags, "--mode", "finetune", "--out", str(folder / "tuned")]) == 0
    model = load_model(folder / "model", "cpu")
    shutil.copytree(folder / "prefix", folder / "sweep" / "seed=0")
    (folder / "sweep" / "sweep.json").touch()
    call = Call(torch.zeros(32), torch.zeros(0, 32))
    save_calls(folder / "calls.safetensors", model, {"a": call}, {})
    return folder


@pytest.fixture
def place(made: Path, monkeypatch) -> Path:
    monkeypatch.chdir(made)
    return made


def told(program, capsys, *flags: str, code: int = 2) -> list[str]:
    capsys.readouterr()
    assert program.main(list(flags)) == code
    return capsys.readouterr().err.splitlines()


CHECKPOINT = "prefix/checkpoint/step-00000002.safetensors"


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (("--run", "prefix/prefix.safetensors"), "a prefix; give it to sample's --prefix"),
        (("--prefix", CHECKPOINT), "a checkpoint; give its run's folder to --resume"),
        (("--prefix", "lora/lora.safetensors"), "LoRA; give it to sample's --lora"),
        (("--prefix", "prefix"), "a run's folder; give it to --run"),
        (
            ("--prefix", "model/model.safetensors"),
            "a model's weights; give their folder to --model",
        ),
        (("--prefix", "calls.safetensors"), "the calls of a bank; give their folder to --bank"),
        (("--lora", "prefix/prefix.safetensors"), "a prefix; give it to sample's --prefix"),
        (("--lora", "model"), "a model's folder; give it to --model"),
        (("--run", "tuned/model"), "a model's folder; give it to --model"),
        (("--run", CHECKPOINT), "a checkpoint"),
        (("--run", "sweep"), "a sweep's folder; give one of its runs to --run: seed=0"),
        (
            ("--model", "tuned"),
            "a run's folder; give it to --run or --resume, or its model/ to --model",
        ),
        (("--model", "lora/lora.safetensors"), "LoRA"),
    ],
)
def test_one_in_the_place_of_another(flags, what: str, place, sample, capsys) -> None:
    said = told(sample, capsys, "--table", TABLE, *flags)
    assert len(said) == 1 and said[0].startswith(f"sample.py: {flags[1]}: this is {what}")


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (
            ("--resume", "prefix/prefix.safetensors"),
            "a prefix; give it to sample's --prefix or train's",
        ),
        (("--resume", "model"), "a model's folder"),
        (("--init-prefix", CHECKPOINT), "a checkpoint"),
        (("--init-prefix", "prefix"), "a run's folder"),
        (("--model", "prefix/prefix.safetensors"), "a prefix"),
    ],
)
def test_one_in_the_place_of_another_in_training(flags, what: str, place, capsys) -> None:
    said = told(train, capsys, *flags)
    assert len(said) == 1 and said[0].startswith(f"train.py: {flags[1]}: this is {what}")


def test_what_is_none_of_these_is_told_as_before(place, sample, capsys) -> None:
    for name, content in (
        ("empty", b""),
        ("short", b"\x40" + b"\0" * 7),
        ("text", b"name[A]\n" * 9),
    ):
        (place / name).write_bytes(content)
        said = told(sample, capsys, "--table", TABLE, "--prefix", name)
        assert len(said) == 1 and "this is" not in said[0]


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (
            "prefix",
            "to train further, start a new run with --init-prefix prefix/prefix.safetensors",
        ),
        ("tuned", "to train further, start a new run with --model tuned/model"),
        ("lora", "nothing is left to do"),
        ("both", "nothing is left to do"),
    ],
)
def test_a_run_that_has_ended(run: str, what: str, place, capsys, tmp_path: Path) -> None:
    said = told(train, capsys, "--resume", run)
    assert said == [f"train.py: {run}: this run has finished; {what}"]
    if "--" in what:  # and so it can be done
        flags = ["--data", "small.csv", "--device", "cpu", "--max-steps", "1"]
        if run == "prefix":
            flags += ["--model", "model"]
        flags += what.partition(" with ")[2].split()
        told(train, capsys, *flags, "--out", str(tmp_path / "on"), code=0)


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (
            ("finetune", "--prefix-length", "5"),
            "--prefix-length is for --mode prefix or prefix+lora",
        ),
        (("finetune", "--no-reparam"), "--no-reparam is for --mode prefix or prefix+lora"),
        (("lora", "--init", "noise", "--depth", "all"), "--depth, --init are for --mode prefix or"),
        (("prefix", "--lora-rank", "4"), "--lora-rank is for --mode lora or prefix+lora"),
    ],
)
def test_flags_of_another_mode(flags, what: str, place, capsys) -> None:
    said = told(train, capsys, "--mode", *flags)
    assert len(said) == 1 and said[0].startswith(f"train.py: {what}")


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (("--mode", "sing"), "invalid choice 'sing' for argument '--mode'."),
        (("--optimizer", "sgd"), "invalid choice 'sgd' for argument '--optimizer'."),
        (("--frobnicate",), "unknown arguments: --frobnicate"),
        (("--resume",), "--resume: a value is missing"),
        (("--learning-rate", "abc"), "--lr: 'abc' is not a number"),
        (("--seed", "1.5"), "--seed: '1.5' is not a whole number"),
        (
            ("--learning-rate", "-1", "--model", "model", "--data", "small.csv"),
            "lr must be positive",
        ),
    ],
)
def test_flags_that_cannot_be(flags, what: str, place, capsys) -> None:
    said = told(train, capsys, *flags)
    assert len(said) == 1 and said[0].startswith(f"train.py: {what}")


def unseen(lines: list[str]) -> list[str]:
    start = "sample.py: warning: slots missing from the training data: "
    return [line.removeprefix(start) for line in lines if line.startswith(start)]


@pytest.mark.parametrize(
    "flags",
    [
        ("--run", "prefix", "--model", "model"),
        ("--run", "lora", "--model", "model"),
        ("--run", "both", "--model", "model"),
        ("--run", "tuned"),
        ("--prefix", "prefix/prefix.safetensors", "--model", "model"),
    ],
)
def test_slots_that_training_never_saw(flags, place, sample, capsys) -> None:
    seen = [TABLE, "name[A], Type[pub]", '{"eatType": "pub"}']
    other = [
        "name[A], eat_type[pub]",
        "Name[A], area[city]",
        '{"price": "high"}',
        *["area[B]"] * 99,
    ]
    flags = (*flags, "--input", "tables.txt", "--beams", "1", "--max-new-tokens", "2")
    for lines, expected in ((seen, []), (seen + other, ["eat_type, Name, area, price"])):
        (place / "tables.txt").write_text("\n".join(lines))
        said = unseen(told(sample, capsys, *flags, code=0))
        assert said == [f"{names} (it has eatType, name)" for names in expected]


def test_the_shipped_prefix_knows_its_slots(sample, capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--beams", "1", "--max-new-tokens", "2", "--device", "cpu")
    said = unseen(told(sample, capsys, "--table", "name[A], eat_type[pub]", *flags, code=0))
    assert len(said) == 1 and said[0].startswith("eat_type (it has area, customer rating, eatType")


def test_slots_without_number_are_not_warned_of(place, sample, capsys, tmp_path: Path) -> None:
    triples = [{"table": [["Inn", "near", "Mill"]], "text": "It is near."} for _ in range(9)]
    many = [{"table": {f"slot{n}": "x"}, "text": "It is x."} for n in range(200)]
    for name, rows in (("triples", triples), ("many", many)):
        (tmp_path / name).with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows)))
        flags = (
            "--model",
            "model",
            "--device",
            "cpu",
            "--max-steps",
            "1",
            "--out",
            str(tmp_path / name),
        )
        told(train, capsys, "--data", str(tmp_path / f"{name}.jsonl"), *flags, code=0)
        flags = ("--run", str(tmp_path / name), "--model", "model", "--max-new-tokens", "2")
        assert unseen(told(sample, capsys, "--table", "a[b]", *flags, code=0)) == []


@pytest.mark.parametrize(("rows", "is_told"), [(1, True), (2, False)])
def test_tables_that_are_too_few_to_hold_one_out(
    rows: int, is_told: bool, place, capsys, tmp_path: Path
) -> None:
    with (tmp_path / "few.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("mr", "ref"), *((f"name[{n}]", f"{n}.") for n in range(rows))])
    flags = ["--model", "model", "--data", str(tmp_path / "few.csv"), "--max-steps", "1"]
    capsys.readouterr()
    assert train.main([*flags, "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    said = "No table is held out: there is no dev loss, and no score."
    assert (said in capsys.readouterr().out) == is_told


@pytest.mark.parametrize(
    ("flags", "is_told"),
    [
        (("--model", "tiny", "--lr", "50", "--batch-size", "4", "--max-steps", "8"), True),
        (("--model", "model", "--mode", "finetune", "--lr", "5", "--max-steps", "12"), True),
        (("--model", "model", "--mode", "finetune", "--lr", "0.001", "--max-steps", "12"), False),
    ],
)
def test_a_loss_that_rose(flags, is_told: bool, place, capsys, tmp_path: Path) -> None:
    flags = [*flags, "--data", "small.csv", "--limit-examples", "24", "--device", "cpu"]
    capsys.readouterr()
    assert train.main([*flags, "--out", str(tmp_path / "run")]) == 0
    assert ("a lower --lr may learn more." in capsys.readouterr().out) == is_told


def test_chance_is_no_rise() -> None:
    assert rise([]) == rise([{"loss": 1.0}]) == rise([{"loss": 1.0}, {"loss": 1.09}]) == ""
    falling = [{"loss": 2.0}, *[{"loss": 30.0 / n} for n in range(1, 40)]]
    assert rise(falling) == ""
    said = "The loss began at 1.500 and ended at 8.000: a lower --lr may learn more."
    assert rise([{"loss": 1.5}, *[{"loss": 40.0}] * 9, *[{"loss": 8.0}] * 10]) == said
