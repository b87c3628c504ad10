"""Runs that learn LoRA, with and without a prefix: their files, who may use them, and bad input."""

import dataclasses
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

import sample
import train
from mingpt_prefix import lora as low_rank
from mingpt_prefix.adapters.lora_file import (
    LoraInfo,
    changes_digest,
    load_folded,
    read_lora,
    save_lora,
)
from mingpt_prefix.adapters.prefix_file import load_prefix
from mingpt_prefix.checkpoints.pretrained import load_model, save_model
from mingpt_prefix.cli import train as program
from mingpt_prefix.config import Decoding, ModelConfig
from mingpt_prefix.data.tables import parse_table
from mingpt_prefix.errors import AdapterError, LoraError
from mingpt_prefix.evaluation.pipeline import open_pipeline
from mingpt_prefix.evaluation.sample_config import SampleConfig
from mingpt_prefix.export import convert as export
from mingpt_prefix.lora import Lora
from mingpt_prefix.serve.models import open_models

SHAPE = ModelConfig(2, 2, 32, vocab_size=4096, n_positions=160, eos_token_id=4095, tokenizer="tiny")
INFO = LoraInfo("tiny", "0a" * 32, 2, 4.0, ["attn.c_attn", "mlp.c_fc"], "text", {"lr": 0.1})
FIELDS = dataclasses.asdict(INFO) | {"version": 1}  # which has no SHA-256
QUICK = ["--device", "cpu", "--batch-size", "8", "--max-steps", "8", "--evals", "2"]
TABLE = ["--table", "name[Inn 3], eatType[pub]"]


def some_changes() -> low_rank.LowRank:
    lora = Lora(SHAPE, 2, 4.0, INFO.targets)
    for number, b in enumerate(lora.b):
        torch.nn.init.normal_(b, generator=torch.Generator().manual_seed(number))
    return lora.requires_grad_(False)()


def refusal(capsys, program, *argv: str) -> str:
    """The one line that a script refuses with."""
    capsys.readouterr()
    assert program.main([str(word) for word in argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    return line


@pytest.fixture(scope="module")
def made(small_model: Path, small_data: Path, tmp_path_factory) -> Path:
    """A folder with a run of each kind, on the small model."""
    folder = tmp_path_factory.mktemp("lora")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for mode, more in (
            ("lora", ["--lora-targets", "attn.c_attn"]),
            ("prefix+lora", ["--prefix-length", "4", "--lora-targets", "mlp.c_fc", "attn.c_proj"]),
            ("prefix", ["--prefix-length", "4"]),
        ):
            flags = ["--model", str(small_model), "--data", str(small_data), *QUICK, *more]
            assert train.main([*flags, "--mode", mode, "--out", mode]) == 0
    return folder


# Runs


@pytest.mark.parametrize("mode", ["lora", "prefix+lora"])
def test_what_a_run_leaves(mode: str, made: Path, small_model: Path) -> None:
    files = {path.name for path in (made / mode).iterdir()}
    own = {"lora.safetensors", *(["prefix.safetensors"] if mode == "prefix+lora" else [])}
    assert files == own | {"run.json", "log.jsonl", "loss.png", "checkpoint"}
    losses = [json.loads(line)["loss"] for line in (made / mode / "log.jsonl").open()]
    assert losses[-1] < losses[0]
    changes, info = read_lora(made / mode / "lora.safetensors")
    assert info.fingerprint == load_model(small_model).fingerprint and info.base == ""
    assert info.targets == (["attn.c_attn"] if mode == "lora" else ["attn.c_proj", "mlp.c_fc"])
    kept = sum(t.numel() for t in changes.tensors())
    kept += load_prefix(made / mode / "prefix.safetensors").kv.numel() if "+" in mode else 0
    assert json.loads((made / mode / "run.json").read_text())["result"]["kept"] == kept
    held = {name for name in load_file(made / mode / "lora.safetensors")}
    assert held == {f"{target}.{name}" for target in info.targets for name in "ab"}


def test_the_base_is_not_touched(small_model, small_data, tmp_path: Path, monkeypatch) -> None:
    """Its file, and its weights in memory: packed or not, they are what they were, to the byte."""
    seen, real = [], program.load_base
    monkeypatch.setattr(program, "load_base", lambda config: seen.append(real(config)) or seen[0])
    before = (small_model / "model.safetensors").read_bytes()
    weights = {n: p.clone() for n, p in load_model(small_model).named_parameters()}
    flags = ["--mode", "prefix+lora", "--model", str(small_model), "--data", str(small_data)]
    assert train.main([*flags, *QUICK, "--grad-checkpoint", "--out", str(tmp_path / "run")]) == 0
    assert (small_model / "model.safetensors").read_bytes() == before
    after = dict(seen[0].named_parameters())
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("mode", ["lora", "prefix+lora"])
def test_sample_writes_what_the_run_said(mode, made, small_model, monkeypatch, capsys) -> None:
    monkeypatch.chdir(made)
    short = ("--max-new-tokens", "6", "--beams", "1")
    flags = ["--run", mode, "--model", str(small_model), *TABLE, *short]
    assert sample.main(flags) == 0
    said = capsys.readouterr().out
    writer = open_pipeline(SampleConfig(run=Path(mode), model=str(small_model)))
    table = parse_table(TABLE[1])
    assert writer.write([table], Decoding(max_new_tokens=6)) == [said.rstrip("\n")]
    # The weights that write are the base's with the changes, and the prefix is the run's.
    model, _ = load_folded(str(small_model), made / mode / "lora.safetensors")
    assert torch.equal(writer.model.h[0].attn.c_attn.weight, model.h[0].attn.c_attn.weight)
    base = load_model(small_model)
    assert (writer.prefix is None) == (mode == "lora") and writer.model.wte.weight.equal(
        base.wte.weight
    )
    changes, _ = read_lora(made / mode / "lora.safetensors")
    ids = [torch.arange(9)]
    with changes.attached(base):
        (beside,) = base.logits(ids, writer.prefix)
    torch.testing.assert_close(writer.model.logits(ids, writer.prefix)[0], beside)


def test_a_server_s_voices(made: Path, small_model: Path) -> None:
    flags = SampleConfig(run=made / "prefix", model=str(small_model), beside=(made / "lora",))
    voices = open_models(flags)
    assert [(v.name, v.kind) for v in voices] == [
        ("prefix", "prefix"), ("frozen", "frozen"), ("lora", "fine-tuned"),
    ]  # fmt: skip
    (both,) = open_models(SampleConfig(run=made / "prefix+lora", model=str(small_model)))
    assert (both.name, both.kind) == ("prefix+lora", "fine-tuned") and both.pipeline.prefix
    # By their files, which have the name of every run's.
    file = made / "lora" / "lora.safetensors"
    (alone,) = open_models(SampleConfig(lora=file, model=str(small_model)))
    assert (alone.name, alone.kind) == ("lora", "fine-tuned")
    found = open_models(dataclasses.replace(flags, beside=(file, made / "prefix+lora")))
    assert [v.name for v in found] == ["prefix", "frozen", "lora", "prefix+lora"]
    assert found[2].pipeline.model.fingerprint == voices[2].pipeline.model.fingerprint


def test_sample_takes_the_files_of_a_run(made: Path, small_model: Path, capsys, monkeypatch):
    monkeypatch.chdir(made)
    lora, prefix = "prefix+lora/lora.safetensors", "prefix+lora/prefix.safetensors"
    how = ["--model", str(small_model), *TABLE, "--max-new-tokens", "6"]
    for run, files in (
        ("lora", ["--lora", "lora/lora.safetensors"]),
        ("prefix+lora", ["--lora", lora, "--prefix", prefix]),
    ):
        assert sample.main(["--run", run, *how]) == 0
        said = capsys.readouterr().out
        assert sample.main([*files, *how]) == 0
        assert capsys.readouterr().out == said
    other = ["--lora", "lora/lora.safetensors", "--prefix", prefix]
    assert "was trained with LoRA" in refusal(capsys, sample, *other, *how)
    other = ["--lora", lora, "--prefix", "prefix/prefix.safetensors"]
    assert "was made for the weights of" in refusal(capsys, sample, *other, *how)
    line = refusal(capsys, sample, "--run", "lora", "--lora", lora, *how)
    assert "--run and --lora exclude each other" in line
    assert "this is a prefix" in refusal(capsys, sample, "--lora", prefix, *how)
    assert "absent: no such file" in refusal(capsys, sample, "--lora", "absent", *how)


def test_a_prefix_trained_with_lora_is_no_use_without(
    made: Path, small_model: Path, small_data: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(made)
    file, base = "prefix+lora/prefix.safetensors", ["--model", small_model]
    why = "the prefix was trained with LoRA"
    assert why in refusal(capsys, sample, "--prefix", file, *base, *TABLE)
    assert why in refusal(capsys, train, *base, "--init-prefix", file, "--data", small_data)
    assert why in refusal(capsys, export, "--to", "peft", file, "out")
    line = refusal(capsys, export, "--to", "peft", "prefix+lora", "out")
    assert "a run of prefix+lora, and other libraries have no adapter that is both" in line
    # Nor with LoRA that is not its own.
    twin = made / "twin"
    twin.mkdir()
    for name in ("run.json", "prefix.safetensors"):
        (twin / name).write_bytes((made / "prefix+lora" / name).read_bytes())
    (twin / "lora.safetensors").write_bytes((made / "lora" / "lora.safetensors").read_bytes())
    assert why in refusal(capsys, sample, "--run", "twin", *base, *TABLE)


# Bad input


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--mode", "lora", "--lora-rank", "0"], "lora-rank must be positive, not 0"),
        (["--mode", "lora", "--lora-rank", "33"], "lora-rank must lie in 1 to 32"),
        (["--mode", "lora", "--lora-alpha", "-1"], "lora-alpha must be positive"),
        (["--mode", "lora", "--lora-alpha", "inf"], "lora-alpha must be finite"),
        (["--mode", "lora", "--lora-dropout", "1"], "lora-dropout must lie in [0, 1)"),
        (["--mode", "lora", "--lora-targets", "wte"], "wte"),
        (["--mode", "lora", "--lora-targets", "mlp.c_fc", "mlp.c_fc"], "each once"),
        (["--mode", "lora", "--prefix-length", "4"], "--mode prefix or prefix+lora, not lora"),
        (["--mode", "lora", "--reparam"], "--mode prefix or prefix+lora, not lora"),
        (["--mode", "lora", "--lora-lr", "0.1"], "--lora-lr is for --mode prefix+lora, not lora"),
        (["--mode", "lora", "--optimizer", "muon"], "--optimizer muon is for matrices"),
        (["--mode", "prefix", "--lora-rank", "4"], "--mode lora or prefix+lora, not prefix"),
        (["--mode", "finetune", "--lora-alpha", "4"], "--mode lora or prefix+lora, not finetune"),
        (["--mode", "prefix+lora", "--depth", "embedding"], "--depth embedding is for"),
        (["--mode", "prefix+lora", "--lora-lr", "-1"], "lora-lr must not be negative"),
        (["--mode", "lora+prefix"], "lora+prefix"),
    ],
)
def test_bad_flags(flags, what, small_model, small_data, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    base = ["--model", small_model, "--data", small_data, "--device", "cpu"]
    assert what in refusal(capsys, train, *base, *flags)
    assert not (tmp_path / "runs").exists()


def test_a_lora_of_another_base(made: Path, small_model, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(made)
    assert "name that with --model" in refusal(capsys, sample, "--run", "lora", *TABLE)
    model = load_model(small_model)
    with torch.no_grad():
        model.wte.weight[0, 0] += 1
    save_model(model, tmp_path / "other")
    line = refusal(capsys, sample, "--run", "lora", "--model", tmp_path / "other", *TABLE)
    assert "lora/lora.safetensors: the LoRA was made for the weights of a folder (" in line
    line = refusal(capsys, sample, "--run", "lora", "--model", "tiny", *TABLE)
    assert "not of tiny (" in line
    line = refusal(capsys, sample, "--prefix", "lora/lora.safetensors", "--model", "tiny", *TABLE)
    assert "this is LoRA; give it to sample's --lora" in line


@pytest.mark.parametrize("damage", ["cut", "gone", "nan", "prefix"])
def test_a_damaged_run(damage, made: Path, small_model, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "lora.safetensors"
    (tmp_path / "run" / "run.json").write_bytes((made / "lora" / "run.json").read_bytes())
    whole = (made / "lora" / "lora.safetensors").read_bytes()
    if damage == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "nan":
        file.write_bytes(whole[:-4] + struct.pack("<f", float("nan")))
    elif damage == "prefix":
        file.write_bytes((made / "prefix" / "prefix.safetensors").read_bytes())
    line = refusal(capsys, sample, "--run", "run", "--model", small_model, *TABLE)
    expected = {
        "cut": "damaged",
        "gone": "no such file",
        "nan": "SHA-256 differs",
        "prefix": "this is a prefix",
    }
    assert f"run/lora.safetensors: {expected[damage]}" in line or expected[damage] in line


# The file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lora.safetensors"


def test_round_trip(path: Path) -> None:
    changes = some_changes()
    save_lora(path, changes, INFO)
    first = path.read_bytes()
    found, info = read_lora(path)
    assert info == INFO and found.scale == 2.0 == changes.scale
    assert changes_digest(found) == changes_digest(changes)
    for one, other in zip(found.tensors(), changes.tensors(), strict=True):
        assert torch.equal(one, other)
    turned = low_rank.LowRank(dict(reversed(changes.factors.items())), changes.scale)
    save_lora(path, turned, dataclasses.replace(INFO, training=dict(INFO.training)))
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        (FIELDS | {"version": 3}, "format 3, and this program knows up to 2"),
        (FIELDS | {"rank": 0}, "rank must be positive"),
        (FIELDS | {"rank": True}, "rank is not of type int"),
        (FIELDS | {"alpha": 4}, "alpha is not of type float"),
        (FIELDS | {"alpha": -1.0}, "alpha must be positive"),
        (FIELDS | {"alpha": float("nan")}, "alpha must be positive"),
        (FIELDS | {"targets": []}, "the targets"),
        (FIELDS | {"targets": ["wte"]}, "the targets"),
        (FIELDS | {"targets": [3, None, {}]}, "the targets"),
        (FIELDS | {"targets": ["mlp.c_fc"] * 2}, "the targets"),
        (FIELDS | {"targets": ["mlp.c_fc"]}, "missing or unexpected: attn.c_attn.a"),
        (FIELDS | {"fingerprint": "x"}, "SHA-256"),
        ({"version": 1}, "alpha, base"),
        ("{", "not valid JSON"),
    ],
)
def test_wrong_metadata(fields, what: str, path: Path) -> None:
    text = fields if isinstance(fields, str) else json.dumps(fields)
    save_lora(path, some_changes(), INFO)
    path.write_bytes(save(load_file(path), metadata={"mingpt_lora": text}))
    with pytest.raises(LoraError, match=what) as caught:
        read_lora(path)
    assert str(caught.value).startswith(str(path)) and str(caught.value).isprintable()


def test_wrong_tensors(path: Path, small_model: Path) -> None:
    save_lora(path, some_changes(), INFO)
    whole = {name: tensor.clone() for name, tensor in load_file(path).items()}
    metadata = {"mingpt_lora": json.dumps(FIELDS)}
    name = "attn.c_attn.a"
    for wrong, what in (
        ({name: whole[name].half()}, "dtype F16"),
        ({name: whole[name] * torch.inf}, "NaN or infinite"),
        ({"more": torch.zeros(1)}, "missing or unexpected: more"),
    ):
        path.write_bytes(save(whole | wrong, metadata=metadata))
        with pytest.raises(LoraError, match=what):
            read_lora(path)
    own = json.dumps(FIELDS | {"fingerprint": load_model(small_model).fingerprint})
    for shape in ((2, 32, 3), (1, 32, 2), (2, 31, 2), (2, 64), ()):
        wrong = whole | {name: torch.ones(shape)}
        path.write_bytes(save(wrong, metadata={"mingpt_lora": own}))
        with pytest.raises(LoraError, match="attn.c_attn.a has shape"):
            load_folded(str(small_model), path)
    broken = {"attn.c_attn": (torch.full((2, 32, 2), torch.nan), torch.zeros(2, 2, 96))}
    info = dataclasses.replace(INFO, targets=["attn.c_attn"])
    with pytest.raises(LoraError, match="NaN"):
        save_lora(path, low_rank.LowRank(broken, 2.0), info)


def test_truncated_and_edited(path: Path) -> None:
    """Every damage gives one line."""
    save_lora(path, some_changes(), INFO)
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    damaged = [whole[:length] for length in range(0, len(whole), 397)]
    damaged += [
        whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(header + 40)
    ]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(AdapterError) as caught:
            read_lora(path)
        assert str(caught.value).isprintable()
