"""Prefixes to and from the real PEFT and transformers, and training on from what PEFT trained."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from wide_models import SHAPE, peer_of, train_and_save, wide_model

import train
from mingpt_prefix import load_pipeline, tiny
from mingpt_prefix.adaptation import Adaptation
from mingpt_prefix.adapters.learned import make_encoder
from mingpt_prefix.adapters.prefix_file import PrefixInfo, read_prefix, rows_digest, save_prefix
from mingpt_prefix.checkpoints.pretrained import load_model
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.data.datasets import load_examples
from mingpt_prefix.data.encoding import encode_example
from mingpt_prefix.data.tables import TEXT_FORMAT, linearize
from mingpt_prefix.errors import MingptPrefixError, PrefixError
from mingpt_prefix.evaluation.pipeline import open_pipeline
from mingpt_prefix.evaluation.sample_config import SampleConfig
from mingpt_prefix.export.convert import import_adapter, main
from mingpt_prefix.model import GPT2
from mingpt_prefix.step import TrainStep

# PEFT calls transformers in ways that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

P = 5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_model(tmp_path_factory.mktemp("base") / "model", 0)


@pytest.fixture(scope="module")
def ours(base: Path) -> GPT2:
    return load_model(base, "cpu", "fp32")


@pytest.fixture
def file(ours: GPT2, tmp_path: Path) -> Path:
    """A prefix file of wide rows."""
    kv = torch.randn((3, 2, P, 2, 8), generator=torch.Generator().manual_seed(1))
    info = PrefixInfo("", ours.fingerprint, P, TEXT_FORMAT, "prefix", {"lr": 0.1})
    save_prefix(tmp_path / "prefix.safetensors", kv, info)
    return tmp_path / "prefix.safetensors"


def assert_same_logits(ours: GPT2, file: Path, theirs) -> None:
    """`theirs` (input_ids, attention_mask) -> logits, of a padded batch."""
    prefix, _ = read_prefix(file)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(SHAPE.vocab_size, (2, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    logits = theirs(ids, mask)
    for row, length in ((0, 11), (1, 7)):
        (expected,) = ours.logits([ids[row, :length]], prefix)
        torch.testing.assert_close(logits[row, :length], expected, atol=2e-4, rtol=1e-4)
        (without,) = ours.logits([ids[row, :length]])
        assert (expected - without).abs().amax(-1).min() > 0.1


def peft_trained(base: Path, folder: Path, projection: bool) -> torch.nn.Module:
    """A prefix that PEFT trained for some steps, and saved in `folder`."""
    torch.manual_seed(3)
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=P,
        prefix_projection=projection,
        encoder_hidden_size=12,
    )
    return train_and_save(peft.get_peft_model(peer_of(base), config), folder, lr=0.3)


# Out


def test_peft_loads_what_we_trained(base, ours, file, tmp_path: Path, capsys) -> None:
    assert main(["--to", "peft", str(file), str(tmp_path / "adapter")]) == 0
    assert capsys.readouterr().out == f"Saved {tmp_path / 'adapter'}.\n"
    model = peft.PeftModel.from_pretrained(peer_of(base), str(tmp_path / "adapter")).eval()
    assert model.active_peft_config.num_virtual_tokens == P
    with torch.no_grad():
        assert_same_logits(
            ours, file, lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits
        )


def test_there_and_back_gives_equal_bytes(base, file, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(["--to", "peft", str(file), str(tmp_path / name)]) == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    import_adapter(tmp_path / "a", tmp_path / "back.safetensors", str(base), None)
    assert (tmp_path / "back.safetensors").read_bytes() == file.read_bytes()


def test_transformers_takes_keys_and_values(base, ours, file, tmp_path: Path) -> None:
    path = tmp_path / "past.safetensors"
    assert main(["--to", "past-key-values", str(file), str(path)]) == 0
    rows, cache = load_file(path), transformers.DynamicCache()
    for layer in range(len(rows) // 2):
        key, value = (rows[f"{name}.{layer}"].repeat(2, 1, 1, 1) for name in ("key", "value"))
        cache.update(key, value, layer)
    model = peer_of(base)

    def logits(ids, mask):
        mask = torch.cat([torch.ones(2, P, dtype=torch.long), mask], dim=1)
        return model(ids, past_key_values=cache, attention_mask=mask).logits

    with torch.no_grad():
        assert_same_logits(ours, file, logits)


@pytest.mark.parametrize("name", ["base", "tiny", "run"])
def test_auto_peft_model_finds_the_base(name, base, ours, file, tmp_path: Path, capsys) -> None:
    flags, source = [], file
    if name == "base":
        flags = ["--model", str(base)]
    elif name == "tiny":
        ours, source = load_model("tiny", "cpu", "fp32"), tiny.PREFIX
    else:
        source = tmp_path / "run"
        source.mkdir()
        shutil.copy(file, source / "prefix.safetensors")
        content = {"config": {"mode": "prefix", "model": str(base)}, "result": {}}
        (source / "run.json").write_text(json.dumps(content), encoding="utf-8")
    folder = tmp_path / "adapter"
    assert main(["--to", "peft", str(source), str(folder), *flags]) == 0
    model = peft.AutoPeftModelForCausalLM.from_pretrained(str(folder)).float().eval()
    ids = torch.arange(40, 51)
    prefix, info = read_prefix(file if name == "run" else source)
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0]
    torch.testing.assert_close(logits, ours.logits([ids], prefix)[0], atol=1e-3, rtol=1e-3)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert info.fingerprint in card and " name : The Mill | Type : pub<|endoftext|>" in card


def test_the_base_and_the_card_that_an_adapter_has(file, tmp_path: Path, capsys) -> None:
    prefix, info = read_prefix(file)
    for name, base in (("gpt2-medium", "openai-community/gpt2-medium"), ("", None)):
        known = replace(info, base=name, text_format="template-v1:{title} by {author}")
        save_prefix(file, prefix.kv, known)
        assert main(["--to", "peft", str(file), str(tmp_path / "adapter")]) == 0
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == base
        card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
        assert (f"base_model: {base}\n" in card) == (base is not None)
        assert " {title} by {author}<|endoftext|>" in card
    capsys.readouterr()
    assert main(["--to", "peft", str(file), str(tmp_path / "other"), "--model", "tiny"]) == 2
    assert "was made for the weights of" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("my own words")
    assert main(["--to", "peft", str(file), str(tmp_path / "mine")]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["peft", "past-key-values"])
def test_an_infix_stays_here(file: Path, tmp_path: Path, to: str, capsys) -> None:
    prefix, info = read_prefix(file)
    save_prefix(file, prefix.kv, replace(info, placement="infix"))
    assert main(["--to", to, str(file), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "infix" in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_runs_that_have_no_prefix_to_give(file: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(file, run / "prefix.safetensors")
    for content, what in (
        (None, "no such file; a run's folder has one"),
        ({"config": {"mode": "finetune"}, "result": {}}, "a run of another mode"),
        ({"config": {"mode": "prefix"}, "result": None}, "has not finished"),
    ):
        if content:
            (run / "run.json").write_text(json.dumps(content), encoding="utf-8")
        assert main(["--to", "peft", str(run), str(tmp_path / "out")]) == 2
        assert what in capsys.readouterr().err
    content["result"] = {}
    (run / "run.json").write_text(json.dumps(content), encoding="utf-8")
    assert main(["--to", "peft", str(run), str(run)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["--to", "peft", str(run), str(tmp_path / "out")]) == 0
    (tmp_path / "a file").write_text("x", encoding="utf-8")
    assert main(["--to", "peft", str(run), str(tmp_path / "a file")]) == 2
    assert main(["--to", "past-key-values", str(run), str(run)]) == 2


# In


@pytest.mark.parametrize("projection", [False, True])
def test_we_read_what_peft_trained(
    projection: bool, base: Path, ours: GPT2, tmp_path: Path
) -> None:
    model = peft_trained(base, tmp_path / "adapter", projection)
    file = tmp_path / "mine.safetensors"
    flags = ["--model", str(base), "--input-template", "{name}, a {eatType}"]
    assert main(["--from", "peft", str(tmp_path / "adapter"), str(file), *flags]) == 0
    with torch.no_grad():
        assert_same_logits(
            ours, file, lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits
        )
    # Training begins at those rows, with and without our own MLP.
    prefix, info = read_prefix(file)
    assert info.text_format == "template-v1:{name}, a {eatType}"
    config = TrainConfig(
        "prefix", str(base), ("x",), 0.1, 1, 1, 1, P,
        init_prefix=str(file), init_digest=rows_digest(prefix),
    )  # fmt: skip
    for reparam in (True, False):
        encoder = make_encoder(replace(config, reparam=reparam), ours)
        assert torch.equal(encoder().kv, prefix.kv)


def test_a_prefix_that_peft_trained_on_tables_writes_here(tmp_path: Path) -> None:
    """As a user of PEFT would: AutoTokenizer, 20 steps on batches of tables, save_pretrained."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny.MODEL)
    base = transformers.GPT2LMHeadModel.from_pretrained(tiny.MODEL).float()
    torch.manual_seed(0)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)
    model = peft.get_peft_model(base, config)
    examples, end = load_examples("sample", "train"), tokenizer.eos_token_id
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1)

    def loss_of(batch) -> torch.Tensor:
        prompts = tokenizer([linearize(each.table) for each in batch]).input_ids
        targets = tokenizer([f" {each.text}" for each in batch]).input_ids
        pairs = [([*p, end], [*t, end]) for p, t in zip(prompts, targets, strict=True)]
        ids = [torch.tensor([*p, *t]) for p, t in pairs]
        labels = [torch.tensor([-100] * len(p) + t) for p, t in pairs]
        pad = torch.nn.utils.rnn.pad_sequence
        mask = pad([torch.ones_like(each) for each in ids], batch_first=True)
        given = dict(input_ids=pad(ids, True, end), labels=pad(labels, True, -100))
        return model(**given, attention_mask=mask).loss

    losses = []
    for step in range(20):
        loss = loss_of(examples[8 * step : 8 * step + 8])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    model.save_pretrained(str(tmp_path / "adapter"))
    file = tmp_path / "mine.safetensors"
    import_adapter(tmp_path / "adapter", file, "tiny", None)
    pipeline = load_pipeline(file, device="cpu", dtype="fp32")
    ours = TrainStep(
        TrainConfig("prefix", "tiny", ("x",), 0.1, 1, 1, 1, 20, dtype="fp32"), pipeline.model
    )
    dev = load_examples("sample", "dev")[:8]
    encoded = [encode_example(pipeline.tokenizer, each) for each in dev]
    with torch.no_grad():
        expected = float(loss_of(dev))
    assert losses[-1] < losses[0] - 0.3 and expected < losses[0] - 0.3
    assert ours.mean_loss(encoded, Adaptation(pipeline.prefix)) == pytest.approx(expected, abs=1e-3)
    assert len(pipeline([dev[0].table], beams=1)[0].split()) > 3


def test_train_py_goes_on_from_what_peft_trained(
    base: Path, small_data: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    peft_trained(base, tmp_path / "adapter", projection=True)
    file = tmp_path / "mine.safetensors"
    import_adapter(tmp_path / "adapter", file, str(base), "{name}, a {eatType}")
    prefix, _ = read_prefix(file)
    monkeypatch.chdir(tmp_path)
    argv = ["--model", str(base), "--data", str(small_data), "--init-prefix", str(file)]
    argv += ["--device", "cpu", "--reparam", "--batch-size", "8", "--epochs", "6", "--lr", "0.03"]
    assert train.main([*argv, "--out", "run"]) == 0
    capsys.readouterr()
    losses = [json.loads(line)["loss"] for line in Path("run/log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.1
    after, info = read_prefix(tmp_path / "run" / "prefix.safetensors")
    assert info.length == P and info.text_format == "template-v1:{name}, a {eatType}"
    assert info.training["init_digest"] == rows_digest(prefix)
    assert "init_prefix" not in info.training
    assert not torch.equal(after.kv, prefix.kv)
    writer = open_pipeline(SampleConfig(run=Path("run"), model=str(base)))
    assert writer.text_format == info.text_format


def test_what_training_on_refuses(
    base: Path, ours: GPT2, file: Path, small_data: Path, tmp_path: Path, capsys
) -> None:
    other = wide_model(tmp_path / "other", 9)
    common = ["--data", str(small_data), "--device", "cpu", "--init-prefix", str(file)]
    for flags, what in (
        (["--model", str(base), "--prefix-length", "7"], "--prefix-length 7: the prefix"),
        (["--model", str(base), "--placement", "infix"], "--placement infix: the prefix"),
        (["--model", str(base), "--init-text", "words"], "--init-prefix goes with none"),
        (["--model", str(base), "--init", "examples"], "--init-prefix goes with none"),
        (["--model", str(base), "--depth", "embedding"], "--init-prefix goes with none"),
        (["--model", str(base), "--mode", "finetune"], "is for --mode prefix"),
        (["--model", str(other)], "was made for the weights of"),
    ):
        assert train.main([*common, *flags, "--out", str(tmp_path / "run")]) == 2, flags
        said = capsys.readouterr().err
        assert what in said and said.count("\n") == 1
        assert not (tmp_path / "run").exists()
    config = TrainConfig(
        "prefix", str(base), ("x",), 0.1, 1, 1, 1, P, init_prefix=str(file), init_digest="0" * 64
    )
    with pytest.raises(PrefixError, match="not what the run began with"):
        make_encoder(config, ours)


def test_a_stopped_run_goes_on_from_the_same_rows(
    base: Path, file: Path, small_data: Path, tmp_path: Path, capsys
) -> None:
    argv = ["--model", str(base), "--data", str(small_data), "--init-prefix", str(file)]
    argv += [
        "--device",
        "cpu",
        "--reparam",
        "--batch-size",
        "8",
        "--max-steps",
        "4",
        "--evals",
        "1",
    ]
    run = tmp_path / "run"
    assert train.main([*argv, "--out", str(run)]) == 0
    kept = (run / "prefix.safetensors").read_bytes()
    # As a kill before the first checkpoint leaves it.
    content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps({**content, "result": None}), encoding="utf-8")
    shutil.rmtree(run / "checkpoint")
    (run / "prefix.safetensors").unlink()
    capsys.readouterr()
    assert train.main(["--resume", str(run)]) == 0
    assert (run / "prefix.safetensors").read_bytes() == kept


# Bad input


@pytest.fixture
def adapter(file: Path, tmp_path: Path) -> Path:
    assert main(["--to", "peft", str(file), str(tmp_path / "adapter")]) == 0
    return tmp_path / "adapter"


def change(adapter: Path, **values: object) -> None:
    path = adapter / "adapter_config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(content), encoding="utf-8")


def weights(adapter: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> None:
    save_file(tensors, adapter / "adapter_model.safetensors", metadata or None)


FLAT = {"prompt_embeddings": torch.zeros(P, 96)}
BAD = {
    "no folder": (lambda a: shutil.rmtree(a), "No such file"),
    "no config": (lambda a: (a / "adapter_config.json").unlink(), "No such file"),
    "cut config": (
        lambda a: (a / "adapter_config.json").write_bytes(
            (a / "adapter_config.json").read_bytes()[:100]
        ),
        "not valid JSON",
    ),
    "list": (lambda a: (a / "adapter_config.json").write_text("[]"), "JSON object"),
    "no weights": (lambda a: (a / "adapter_model.safetensors").unlink(), "no such file"),
    "cut weights": (
        lambda a: (a / "adapter_model.safetensors").write_bytes(
            (a / "adapter_model.safetensors").read_bytes()[:-100]
        ),
        "damaged",
    ),
    "pickle under another name": (
        lambda a: torch.save(FLAT, a / "adapter_model.safetensors"), "damaged",
    ),
    "no type": (lambda a: change(a, peft_type=None), "peft_type is 'None'"),
    "encoder": (lambda a: change(a, task_type="SEQ_2_SEQ_LM"), "not 'CAUSAL_LM'"),
    "submodules": (lambda a: change(a, num_transformer_submodules=2), "with an encoder"),
    "length": (lambda a: change(a, num_virtual_tokens="5"), "num_virtual_tokens must be"),
    "huge": (lambda a: change(a, num_layers=10**12), "num_layers must be"),
    "heads": (lambda a: change(a, num_attention_heads=3), "not a multiple"),
    "other shape": (lambda a: change(a, num_layers=4), "has shape (5, 96), not (5, 128)"),
    "other model": (lambda a: change(a, num_attention_heads=4), "the model takes (3, 2, 5, 2, 8)"),
    "nan": (
        lambda a: weights(a, {"prompt_embeddings": torch.full((P, 96), torch.nan)}),
        "NaN or infinite",
    ),
    "integers": (
        lambda a: weights(a, {"prompt_embeddings": torch.zeros(P, 96).int()}), "dtype I32",
    ),
    "another tensor": (
        lambda a: weights(a, FLAT | {"score.weight": torch.zeros(2)}), "prompt_embeddings alone",
    ),
    "damaged metadata": (lambda a: weights(a, FLAT, mingpt_prefix="{"), "not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_adapters(case: str, adapter: Path, base: Path, tmp_path: Path, capsys) -> None:
    spoil, what = BAD[case]
    spoil(adapter)
    capsys.readouterr()
    out = tmp_path / "out.safetensors"
    assert main(["--from", "peft", str(adapter), str(out), "--model", str(base)]) == 2
    said = capsys.readouterr().err
    assert what in said and said.count("\n") == 1 and str(adapter) in said
    assert not out.exists()


def test_adapters_of_another_kind(base: Path, tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    peft.get_peft_model(peer_of(base), config).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(PrefixError, match="not 'PREFIX_TUNING'"):
        import_adapter(tmp_path / "adapter", tmp_path / "out", str(base), None)


def test_pickled_adapters(base: Path, adapter: Path, tmp_path: Path) -> None:
    """What older versions of PEFT wrote; the file is never opened."""
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(FLAT, adapter / "adapter_model.bin")
    with pytest.raises(PrefixError, match=r"adapter_model.bin: it is pickled, which is not read"):
        import_adapter(adapter, tmp_path / "out", str(base), None)


def test_another_model_s_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", wide_model(tmp_path / "other", 9)
    # Of the same shape: known by the fingerprint that we saved.
    with pytest.raises(PrefixError, match="was made for the weights of"):
        import_adapter(adapter, out, str(other), None)
    with pytest.raises(MingptPrefixError, match="name the model .* with --model"):
        import_adapter(adapter, out, None, None)
    for named in ("gpt2-medium", "openai-community/gpt2-medium"):
        change(adapter, base_model_name_or_path=named)
        with pytest.raises(PrefixError, match="trained on gpt2-medium, not on tiny"):
            import_adapter(adapter, out, "tiny", None)
    weights(adapter, FLAT)
    change(adapter, base_model_name_or_path="someone/else")
    with pytest.raises(PrefixError, match="the model takes"):
        import_adapter(adapter, out, "tiny", None)
    assert not out.exists()
    # What PEFT wrote of an unknown base is taken at the user's word.
    import_adapter(adapter, out, str(other), None)
    assert read_prefix(out)[1].fingerprint == load_model(other, "cpu").fingerprint


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["a", "b"], "one of --to and --from"),
        (["--to", "peft", "--from", "peft", "a", "b"], "one of --to and --from"),
        (["--to", "peft", "a"], "missing: TARGET (the folder or file to write). For"),
        (["--to", "peft", "missing", "b"], "missing: no such file"),
        (["--to", "peft", "a", "b", "--input-template", "x"], "goes with --from"),
        (["--to", "onnx", "a", "b"], "onnx"),
    ],
)
def test_bad_flags(flags: list[str], what: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and what in said and not list(tmp_path.iterdir())


def test_the_command_as_a_process(file: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mingpt_prefix",
        "export",
        "--to",
        "peft",
        str(file),
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout
