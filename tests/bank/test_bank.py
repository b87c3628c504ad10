"""A bank: what is written and read back, what is refused, and sample.py and the training by it."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mingpt_prefix import tiny
from mingpt_prefix.adapters.prefix_file import (
    FORMAT,
    PrefixInfo,
    load_prefix,
    read_prefix,
    save_prefix,
)
from mingpt_prefix.bank import store as bank
from mingpt_prefix.bank.calls_file import FORMAT as CALLS_FORMAT
from mingpt_prefix.bank.calls_file import Call, CallsInfo, read_calls, save_calls
from mingpt_prefix.bank.pipeline import open_bank
from mingpt_prefix.bank.store import CALLS_FILE, Bank, add_prefix, read_bank
from mingpt_prefix.call_training import teach as call_training
from mingpt_prefix.call_training.losses import Ends, right_calls
from mingpt_prefix.checkpoints.pretrained import load_model, save_model
from mingpt_prefix.config import MODELS, Decoding
from mingpt_prefix.data.tables import TEXT_FORMAT, parse_table
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.errors import PrefixError
from mingpt_prefix.evaluation.sample_config import SampleConfig
from mingpt_prefix.evaluation.table_to_text import Pipeline
from mingpt_prefix.model import GPT2

TABLE = "name[The Mill], eatType[pub]"
DATA = {
    "inns": [(f"name[Inn {n}], eatType[pub]", f"Inn {n} is a pub.") for n in range(40)],
    "films": [(f"title[Film {n}], year[19{n}]", f"Film {n} is of 19{n}.") for n in range(10, 50)],
}


def save_random_prefix(
    path: Path, model: GPT2, seed: int, rows: int, placement: str = "infix"
) -> None:
    config = model.config
    shape = (config.n_layer, 2, rows, config.n_head, config.head_dim)
    kv = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    info = PrefixInfo("", model.fingerprint, rows, TEXT_FORMAT, placement, {})
    save_prefix(path, kv, info)


@pytest.fixture(scope="module")
def base() -> GPT2:
    return load_model(tiny.MODEL)


@pytest.fixture(scope="module")
def taught(base: GPT2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: the bank `prefixes`, whose calls were learned by the command, and its data."""
    folder = tmp_path_factory.mktemp("taught")
    for number, (name, rows) in enumerate(DATA.items()):
        source = folder / f"{name}.safetensors"
        save_random_prefix(source, base, number, 3 + number)
        lines = "".join(f'"{table}","{text}"\n' for table, text in rows)
        (folder / f"{name}.csv").write_text(f"mr,ref\n{lines}", encoding="utf-8")
    sources = [f"{name}={folder / name}" for name in DATA]
    assert (
        bank.main([str(folder / "prefixes"), "--add", *(f"{s}.safetensors" for s in sources)]) == 0
    )
    flags = ["--data", *(f"{source}.csv" for source in sources), "--model", str(tiny.MODEL)]
    assert (
        call_training.main(
            [
                str(folder / "prefixes"),
                *flags,
                "--steps",
                "60",
                "--lr",
                "0.05",
                "--batch-size",
                "2",
                "--own-texts",
                "16",
            ]
        )
        == 0
    )
    return folder


@pytest.fixture
def folder(taught: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy of that bank and its model in a current folder of their own."""
    shutil.copytree(taught / "prefixes", tmp_path / "prefixes")
    shutil.copytree(tiny.MODEL, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "prefixes"


@pytest.fixture
def call(sample, folder, capsys):
    """main(flags) -> (exit code, lines of stdout, lines of stderr)."""

    def run(*flags: str) -> tuple[int, list[str], list[str]]:
        named = [] if "--model" in flags else ["--model", "model"]
        code = sample.main(["--bank", "prefixes", *named, "--max-new-tokens", "24", *flags])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


# The folder


def test_round_trip(folder: Path, base: GPT2, taught: Path) -> None:
    read = read_bank(folder)
    assert read.names == ("films", "inns") and set(read.calls) == {"films", "inns"}
    for name, kv, info in zip(read.names, read.prefixes, read.infos, strict=True):
        expected, said = read_prefix(taught / f"{name}.safetensors")
        assert torch.equal(kv.kv, expected.kv) and info == said
    again = folder / "again"
    save_calls(again, base, read.calls, {"seed": 0})
    found, _ = read_calls(again)
    for name, call in read.calls.items():
        assert len(call.quiet) > 0 and torch.equal(found[name].row, call.row)
        assert torch.equal(found[name].quiet, call.quiet)
    first = again.read_bytes()
    save_calls(again, base, read.calls, {"seed": 0})
    assert again.read_bytes() == first and not list(folder.glob("*.part"))


def test_a_prefix_is_added_and_replaced(folder: Path, base: GPT2, taught: Path) -> None:
    add_prefix(folder, "more", taught / "inns.safetensors")
    read = read_bank(folder)
    assert read.names == ("films", "inns", "more") and "more" not in read.calls
    calling = read.calling(base)
    assert calling.banned.tolist() == [False, False, True]
    assert torch.equal(calling.rows[2], base.wte.weight[base.config.eos_token_id])
    add_prefix(folder, "more", taught / "films.safetensors")
    assert (folder / "more.safetensors").read_bytes() == (folder / "films.safetensors").read_bytes()


def test_a_learned_call_goes_with_its_prefix(folder: Path, taught: Path) -> None:
    add_prefix(folder, "films", taught / "films.safetensors")  # the same rows again
    assert set(read_bank(folder).calls) == {"films", "inns"}
    add_prefix(folder, "films", taught / "inns.safetensors")
    assert set(read_bank(folder).calls) == {"inns"}
    add_prefix(folder, "inns", taught / "films.safetensors")
    assert not read_bank(folder).calls and read_bank(folder).names == ("films", "inns")


def test_what_other_programs_leave_in_the_folder_stays(folder: Path, taught: Path) -> None:
    (folder / "video.mp4.part").write_text("half a download")
    add_prefix(folder, "more", taught / "inns.safetensors")
    assert (folder / "video.mp4.part").read_text() == "half a download"


def test_a_prefix_that_needs_lora_is_refused(folder: Path, taught: Path, tmp_path: Path) -> None:
    kv, info = read_prefix(taught / "inns.safetensors")
    beside = replace(info, training={**info.training, "mode": "prefix+lora"})
    save_prefix(tmp_path / "beside.safetensors", kv.kv, beside)
    with pytest.raises(PrefixError, match="beside.safetensors: .* trained with LoRA"):
        add_prefix(folder, "more", tmp_path / "beside.safetensors")


def test_another_base_is_refused(folder: Path, taught: Path, tmp_path: Path) -> None:
    other = GPT2(MODELS["tiny"]).initialize(1)
    save_model(other, tmp_path / "other")
    other = load_model(tmp_path / "other")
    with pytest.raises(PrefixError, match=r"films.safetensors: .*made for the weights of"):
        read_bank(folder).calling(other)
    save_random_prefix(tmp_path / "foreign.safetensors", other, 5, 3)
    with pytest.raises(PrefixError, match="another model than the bank's"):
        add_prefix(folder, "foreign", tmp_path / "foreign.safetensors")
    assert not (folder / "foreign.safetensors").exists()
    shutil.copy(tmp_path / "foreign.safetensors", folder)
    with pytest.raises(PrefixError, match="foreign.safetensors were made .* different models"):
        read_bank(folder)


def spoil_calls(folder: Path, **changed) -> None:
    """The file of calls with other metadata, by default of version 1: no SHA-256, no quiet rows."""
    path = folder / CALLS_FILE
    info = json.loads(bank_metadata(path)) | {"version": 1} | changed
    del info["sha256"]
    rows = {"calls": load_file(path)["calls"]}
    save_file(rows, path, metadata={FORMAT.key: json.dumps(info)})


def bank_metadata(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()[FORMAT.key]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


SPOILED = {
    "no prefix in it": lambda f: [path.unlink() for path in f.iterdir()],
    "'In Two' is no name": lambda f: shutil.copy(f / "inns.safetensors", f / "In Two.safetensors"),
    "no inns.safetensors, whose call": lambda f: (f / "inns.safetensors").unlink(),
    "films.safetensors: damaged": lambda f: cut(f / "films.safetensors"),
    "_calls.safetensors: damaged": lambda f: cut(f / CALLS_FILE),
    "'../../films' is no name": lambda f: spoil_calls(f, names=["../../films", "inns"]),
    "one of them twice": lambda f: spoil_calls(f, names=["films", "films"]),
    "a row for each of the names": lambda f: spoil_calls(f, names=["films", "inns", "more"]),
    "format 4, and this program": lambda f: spoil_calls(f, version=4),
    "its SHA-256 differs": lambda f: spoil_calls(f, version=2),
    "names is not of type list": lambda f: spoil_calls(f, names="films"),
    "not a calls file": lambda f: save_file({"calls": torch.zeros(2, 32)}, f / CALLS_FILE),
    "train with --placement infix": lambda f: shutil.copy(tiny.PREFIX, f / "front.safetensors"),
    "of different models": lambda f: spoil_calls(f, fingerprint="0" * 64),
}  # fmt: skip


@pytest.mark.parametrize("said", SPOILED)
def test_a_spoiled_bank_is_one_line_and_exit_code_2(call, folder: Path, said: str) -> None:
    SPOILED[said](folder)
    code, out, err = call("--prompt", f"<|prefix:films|> {TABLE}")
    assert code == 2 and not out and len(err) == 1 and said in err[0]


def test_rows_that_are_not_finite_or_not_as_wide_are_refused(folder: Path, base: GPT2) -> None:
    path, width = folder / CALLS_FILE, base.config.n_embd
    nan = torch.full((1, width), torch.nan)
    for bad in (Call(nan[0], nan[:0]), Call(torch.zeros(width), nan)):
        with pytest.raises(PrefixError, match="NaN"):
            save_calls(path, base, {"films": bad}, {})
    shapes = rf"quiet has shape \(1, 1, 31\), and calls \(1, {width}\)"
    with pytest.raises(PrefixError, match=shapes):
        save_calls(path, base, {"films": Call(torch.zeros(width), torch.zeros(1, 31))}, {})
    tensors = {"calls": torch.zeros(1, width), "quiet": torch.zeros(1, 1, 31)}
    info = CallsInfo("", base.fingerprint, ["films"], {})
    save_file(tensors, path, metadata=CALLS_FORMAT.metadata(info, tensors))
    with pytest.raises(PrefixError, match=shapes):
        read_bank(folder)
    save_calls(path, base, {"films": Call(torch.zeros(31), torch.zeros(1, 31))}, {})
    with pytest.raises(PrefixError, match=f"not as wide as the model, {width}"):
        read_bank(folder).calling(base)


# sample.py


def test_a_call_of_an_infix_that_was_not_learned_is_the_prefix_chosen_by_hand(
    call, folder: Path, base: GPT2
) -> None:
    (folder / CALLS_FILE).unlink()
    table, kv = "title[Film 3], year[1903]", load_prefix(folder / "films.safetensors")
    rules = Decoding(max_new_tokens=24, beams=5)
    tokenizer = load_tokenizer(base.config.tokenizer)
    pipeline = Pipeline(base, tokenizer, kv, placement="infix")
    by_hand = pipeline.write([parse_table(table)], rules)
    code, out, err = call("--prompt", f"<|prefix:films|> {table}")
    assert code == 0 and out == by_hand and out[0]
    assert len(err) == 1 and "the bank prefixes (films, inns) on model" in err[0]


def test_prompts_of_one_batch_see_different_prefixes(call, folder: Path) -> None:
    prompts = [f"<|prefix:{name}|> {TABLE}" for name in ("films", "inns")] + ["The river"]
    alone = [call("--prompt", prompt)[1] for prompt in prompts]
    assert len({line for (line,) in alone}) == 3
    together = call(*(part for prompt in prompts for part in ("--prompt", prompt)))[1]
    assert together == [line for (line,) in alone]
    folder.joinpath("lines").write_text("\n".join([prompts[0], "<|prefix:x|>", *prompts[1:]]))
    code, out, err = call("--prompts", "prefixes/lines")
    assert code == 1 and out == [together[0], "", *together[1:]]
    assert "line 2: no prefix 'x' in the bank; there is: films, inns" in err[1]


def test_prompts_from_stdin(sample, folder, monkeypatch, capsys) -> None:
    lines = io.BytesIO(f"<|prefix:inns|> {TABLE}\n".encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(lines))
    flags = ["--bank", "prefixes", "--model", "model", "--max-new-tokens", "8"]
    assert sample.main([*flags, "--prompts", "-"]) == 0
    from_stdin = capsys.readouterr().out
    assert sample.main([*flags, "--prompt", f"<|prefix:inns|> {TABLE}"]) == 0
    assert capsys.readouterr().out == from_stdin


def test_the_model_calls_for_a_table_and_a_literal_call_in_one_is_text(
    call, folder: Path, base: GPT2
) -> None:
    """Neither --table nor --input ever calls: what is in a value is spelled as any text is."""
    read = open_bank(SampleConfig(bank=folder, model="model"))
    for table, name in (
        ("name[Inn 7], eatType[pub]", "inns"),
        ("title[Film 7], year[1917]", "films"),
    ):
        assert call("--table", table)[1][0].startswith(f"<|prefix:{name}|>")
    literal = parse_table("name[<|prefix:films|>], eatType[pub]")
    ids = read._encode(literal)
    assert max(ids) < base.config.vocab_size
    assert read.tokenizer.decode(ids) == " name : <|prefix:films|> | Type : pub"
    folder.joinpath("lines").write_text("name[<|prefix:nothing|>], eatType[pub]\n")
    code, out, _ = call("--input", "prefixes/lines")
    assert code == 0 and len(out) == 1


BAD_FLAGS = {
    "no prefix 'books' in the bank": ("--prompt", "<|prefix:books|> a[b]"),
    "after <|prefix:films|>: ']' is missing": ("--prompt", "<|prefix:films|> title[a"),
    "the prompt is empty": ("--prompt", ""),
    "the model has room for 511": ("--prompt", " river" * 600),
    "and only one": ("--prompt", "a", "--table", TABLE),
    "excludes --run, --prefix and": ("--prompt", "a", "--prefix", "x"),
    "--prefix and --lora": ("--prompt", "a", "--lora", "x"),
    "unknown arguments: --bank prefixes": ("--serve",),
    "No such file": ("--prompts", "nowhere"),
    "unknown model 'nowhere'": ("--prompt", "a", "--model", "nowhere"),
}


@pytest.mark.parametrize("said", BAD_FLAGS)
def test_bad_flags_are_one_line_and_exit_code_2(call, said: str) -> None:
    """It may come after the line that says who writes."""
    code, out, err = call(*BAD_FLAGS[said])
    told = [line for line in err if not line.startswith("Using ")]
    assert code == 2 and not out and len(told) == 1 and said in told[0]


def test_a_prompt_needs_a_bank_and_a_bank_its_model(sample, folder, capsys) -> None:
    for flags, said in (
        (["--prompt", "a"], "need --bank"),
        (["--bank", "prefixes", "--prompt", "a"], "name that with --model"),
        (["--bank", "nowhere", "--prompt", "a"], "nowhere: no such folder"),
    ):
        assert sample.main(flags) == 2
        assert said in capsys.readouterr().err


# The commands


def test_calls_are_learned(taught: Path, base: GPT2) -> None:
    """On tables that were not trained on; the frozen model's own words call nothing."""
    read: Bank = read_bank(taught / "prefixes")
    model, tokenizer = read.calling(base), load_tokenizer(base.config.tokenizer)
    sources = [(name, str(taught / f"{name}.csv")) for name in DATA]
    dev = call_training.read_lessons(tokenizer, read, base, sources, "dev")
    assert right_calls(model, Ends.of(base, dev)) == 1.0
    lessons = call_training.read_lessons(tokenizer, read, base, sources, "train")
    quiet = call_training.quiet_states(base, tokenizer.eos, lessons, [], 16, seed=7)
    called = model.head(quiet.hidden).argmax(-1) >= base.config.vocab_size
    assert called.float().mean() < 0.05


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data", "films"], "'films' is not NAME=SOURCE"),
        (["--data", "films=sample"], "each of the bank's prefixes, once: films, inns"),
        (["--data", "films=sample", "inns=nowhere.csv"], "no such file or folder"),
        (["--data", "films=sample", "inns=sample", "--steps", "0"], "steps must be positive"),
        (["--data", "films=sample", "inns=sample", "--text", "no.txt"], "no.txt: No such file"),
    ],
)
def test_bad_training_is_one_line_and_exit_code_2(folder, capsys, flags, said) -> None:
    assert call_training.main(["prefixes", "--model", "model", *flags]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and said in err[0]


def test_the_command_shows_a_bank_and_refuses_a_bad_name(folder: Path, taught: Path) -> None:
    command = [sys.executable, "-m", "mingpt_prefix", "bank", "prefixes"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "films: 4 rows, call learned",
        "inns: 3 rows, call learned",
    ]
    for name in ("../up", "_calls", "A", ""):
        added = bank.main(["prefixes", "--add", f"{name}={taught / 'inns.safetensors'}"])
        assert added == 2
    assert sorted(path.name for path in folder.iterdir()) == [
        CALLS_FILE, "films.safetensors", "inns.safetensors",
    ]  # fmt: skip
