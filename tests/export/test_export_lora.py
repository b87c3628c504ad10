"""LoRA to and from the real PEFT."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from wide_models import SHAPE, peer_of, train_and_save, wide_model

import sample
from mingpt_prefix.adapters.lora_file import LoraInfo, load_folded, read_lora, save_lora
from mingpt_prefix.checkpoints.pretrained import load_model
from mingpt_prefix.config import TARGETS
from mingpt_prefix.data.tables import TEXT_FORMAT
from mingpt_prefix.errors import LoraError, MingptPrefixError
from mingpt_prefix.export.convert import import_adapter, main
from mingpt_prefix.lora import LowRank, weight_sizes
from mingpt_prefix.model import GPT2

pytestmark = pytest.mark.filterwarnings("ignore")
peft = pytest.importorskip("peft")

RANK, ALPHA = 3, 6.0
TABLE = ["--table", "name[Inn 3], eatType[pub]", "--max-new-tokens", "6"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_model(tmp_path_factory.mktemp("base") / "model", 0)


@pytest.fixture(scope="module")
def ours(base: Path) -> GPT2:
    return load_model(base, "cpu", "fp32")


def changes(targets: list[str]) -> LowRank:
    generator = torch.Generator().manual_seed(1)
    sizes, factors = weight_sizes(SHAPE), {}
    for target in targets:
        n_in, n_out = sizes[target]
        shapes = (SHAPE.n_layer, n_in, RANK), (SHAPE.n_layer, RANK, n_out)
        factors[target] = tuple(0.3 * torch.randn(shape, generator=generator) for shape in shapes)
    return LowRank(factors, ALPHA / RANK)


def save(path: Path, ours: GPT2, targets: list[str]) -> Path:
    info = LoraInfo("", ours.fingerprint, RANK, ALPHA, sorted(targets), TEXT_FORMAT, {"lr": 0.1})
    save_lora(path, changes(targets), info)
    return path


@pytest.fixture
def file(ours: GPT2, tmp_path: Path) -> Path:
    return save(tmp_path / "lora.safetensors", ours, ["attn.c_attn", "mlp.c_proj"])


def assert_same_logits(ours: GPT2, base: Path, file: Path, theirs: torch.nn.Module) -> None:
    """By the changes in `file` beside the weights and in them, and by PEFT's model."""
    ids = torch.randint(SHAPE.vocab_size, (2, 11), generator=torch.Generator().manual_seed(2))
    low_rank, _ = read_lora(file)
    folded, _ = load_folded(str(base), file, "cpu", "fp32")
    with torch.no_grad():
        logits = theirs(input_ids=ids).logits
        for row, expected in zip(ids, logits, strict=True):
            with low_rank.attached(ours):
                beside = ours.logits([row])
            for found in (beside, folded.logits([row])):
                torch.testing.assert_close(found[0], expected, atol=5e-4, rtol=1e-4)
            assert (ours.logits([row])[0] - expected).abs().amax(-1).min() > 0.1


# Out


@pytest.mark.parametrize("targets", [["attn.c_attn"], ["attn.c_proj"], list(TARGETS)])
def test_peft_loads_what_we_trained(
    targets: list[str], base: Path, ours: GPT2, tmp_path: Path, capsys
) -> None:
    file = save(tmp_path / "mine.safetensors", ours, targets)
    assert main(["--to", "peft", str(file), str(tmp_path / "adapter")]) == 0
    assert capsys.readouterr().out == f"Saved {tmp_path / 'adapter'}.\n"
    model = peft.PeftModel.from_pretrained(peer_of(base), str(tmp_path / "adapter")).eval()
    # What is changed is what was asked for, and nothing more.
    held = {name for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(held) == SHAPE.n_layer * len(targets)
    assert_same_logits(ours, base, file, model)
    merged = model.merge_and_unload()
    assert_same_logits(ours, base, file, merged)


def test_there_and_back_gives_equal_bytes(base: Path, file: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(["--to", "peft", str(file), str(tmp_path / name)]) == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    import_adapter(tmp_path / "a", tmp_path / "back.safetensors", str(base), None)
    assert (tmp_path / "back.safetensors").read_bytes() == file.read_bytes()


def test_what_lora_has_not(file: Path, tmp_path: Path, capsys) -> None:
    assert main(["--to", "past-key-values", str(file), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "which has no keys and values" in said and said.count("\n") == 1
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert main(["--to", "peft", str(file), str(tmp_path / "full")]) == 2
    assert "full: not empty" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# In


def peft_trained(base: Path, folder: Path, **settings: object) -> torch.nn.Module:
    """LoRA that PEFT trained for some steps, and saved in `folder`."""
    torch.manual_seed(3)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=7, **settings)
    return train_and_save(peft.get_peft_model(peer_of(base), config), folder, lr=0.1)


@pytest.mark.parametrize(
    ("settings", "targets"),
    [
        ({}, ["attn.c_attn"]),  # PEFT's own choice for GPT-2
        ({"target_modules": ["c_proj"]}, ["attn.c_proj", "mlp.c_proj"]),
        ({"target_modules": r".*\.h\.\d+\.mlp\.c_fc", "use_rslora": True}, ["mlp.c_fc"]),
        ({"target_modules": "all-linear", "lora_dropout": 0.1}, sorted(TARGETS)),
    ],
)
def test_we_read_what_peft_trained(
    settings: dict, targets: list[str], base: Path, ours: GPT2, tmp_path: Path, capsys
) -> None:
    model = peft_trained(base, tmp_path / "adapter", **settings)
    file = tmp_path / "mine.safetensors"
    flags = ["--model", str(base), "--input-template", "{name}, a {eatType}"]
    assert main(["--from", "peft", str(tmp_path / "adapter"), str(file), *flags]) == 0
    _, info = read_lora(file)
    assert (info.rank, info.targets) == (RANK, targets)
    assert info.text_format == "template-v1:{name}, a {eatType}"
    assert_same_logits(ours, base, file, model)
    # Sentences are written by it, and it goes back to PEFT.
    assert sample.main(["--lora", str(file), "--model", str(base), *TABLE]) == 0
    assert f"the LoRA {file} on {base}" in capsys.readouterr().err
    assert main(["--to", "peft", str(file), str(tmp_path / "again")]) == 0
    again = peft.PeftModel.from_pretrained(peer_of(base), str(tmp_path / "again")).eval()
    assert_same_logits(ours, base, file, again)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"use_dora": True}, "use_dora is set"),
        ({"rank_pattern": {"h.0.attn.c_attn": 2}}, "rank_pattern is set"),
        ({"alpha_pattern": {"h.0.attn.c_attn": 2}}, "alpha_pattern is set"),
        ({"bias": "lora_only"}, "no change of a block's weight by LoRA"),
        ({"layers_to_transform": [0, 2]}, "lora_A of attn.c_attn in layer 1 is missing"),
        ({"layers_to_transform": [0, 1]}, "the model takes (3, 16, 3) of it"),
        ({"target_modules": ["c_attn", "wte"]}, "no change of a block's weight by LoRA"),
        ({"modules_to_save": ["ln_f"]}, "modules_to_save is set"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changed the base's"),
    ],
)
def test_what_peft_has_and_we_have_not(
    settings: dict, what: str, base: Path, tmp_path: Path
) -> None:
    peft_trained(base, tmp_path / "adapter", **settings)
    out = tmp_path / "out"
    with pytest.raises(LoraError, match="adapter.*: ") as raised:
        import_adapter(tmp_path / "adapter", out, str(base), None)
    assert what in str(raised.value) and not out.exists()


# Bad input


def change(adapter: Path, **values: object) -> None:
    path = adapter / "adapter_config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(content), encoding="utf-8")


def respell(adapter: Path, spoil) -> None:
    """The weights with `spoil` done to their names and tensors, without our metadata."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(spoil(tensors), adapter / "adapter_model.safetensors")


FIRST = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
BAD = {
    "rank": (lambda a: change(a, r=0), "r must be a positive whole number"),
    "words for a rank": (lambda a: change(a, r="3"), "r must be a positive whole number"),
    "another rank": (lambda a: change(a, r=4), "adapter_config.json says that r is 4"),
    "alpha": (lambda a: change(a, lora_alpha=-1), "lora_alpha must be a positive number"),
    "huge": (lambda a: change(a, lora_alpha=10**400), "lora_alpha must be a positive number"),
    "infinite": (lambda a: change(a, lora_alpha=1e999), "lora_alpha must be a positive number"),
    "another alpha": (lambda a: change(a, lora_alpha=5), "saved with rank 3 and alpha 6; "),
    "task": (lambda a: change(a, task_type="SEQ_CLS"), "not 'CAUSAL_LM'"),
    "nothing": (lambda a: respell(a, lambda t: {}), "it holds no tensors"),
    "nan": (
        lambda a: respell(a, lambda t: t | {FIRST: torch.full((RANK, 16), torch.nan)}),
        "NaN or infinite",
    ),
    "integers": (
        lambda a: respell(a, lambda t: t | {FIRST: torch.zeros(RANK, 16).int()}), "dtype I32",
    ),
    "a vector": (lambda a: respell(a, lambda t: t | {FIRST: torch.zeros(16)}), "has shape (16,)"),
    "another width": (
        lambda a: respell(a, lambda t: t | {FIRST: torch.zeros(RANK, 17)}),
        "has shape (3, 16), not (3, 17)",
    ),
    "one missing": (
        lambda a: respell(a, lambda t: {n: v for n, v in t.items() if n != FIRST}),
        "lora_A of attn.c_attn in layer 0 is missing",
    ),
    "twice": (
        lambda a: respell(a, lambda t: t | {FIRST.replace("transformer.", ""): t[FIRST].clone()}),
        "it is there by another name too",
    ),
    "far layer": (
        lambda a: respell(a, lambda t: t | {FIRST.replace("h.0", "h.9999"): t[FIRST].clone()}),
        "is missing",
    ),
    "a changed bit": (
        lambda a: (a / "adapter_model.safetensors").write_bytes(
            (lambda b: b[:-1] + bytes([b[-1] ^ 1]))((a / "adapter_model.safetensors").read_bytes())
        ),
        "its SHA-256 differs",
    ),
    "cut": (
        lambda a: (a / "adapter_model.safetensors").write_bytes(
            (a / "adapter_model.safetensors").read_bytes()[:-100]
        ),
        "damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_adapters(case: str, file: Path, base: Path, tmp_path: Path, capsys) -> None:
    spoil, what = BAD[case]
    adapter, out = tmp_path / "adapter", tmp_path / "out.safetensors"
    assert main(["--to", "peft", str(file), str(adapter)]) == 0
    spoil(adapter)
    capsys.readouterr()
    assert main(["--from", "peft", str(adapter), str(out), "--model", str(base)]) == 2
    said = capsys.readouterr().err
    assert what in said and said.count("\n") == 1 and str(adapter) in said
    assert not out.exists()


def test_another_model_s_adapter(file: Path, base: Path, tmp_path: Path) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    assert main(["--to", "peft", str(file), str(adapter)]) == 0
    other = wide_model(tmp_path / "other", 9)
    with pytest.raises(LoraError, match="was made for the weights of"):
        import_adapter(adapter, out, str(other), None)
    with pytest.raises(MingptPrefixError, match="name the model .* with --model"):
        import_adapter(adapter, out, None, None)
    change(adapter, base_model_name_or_path="openai-community/gpt2-medium")
    with pytest.raises(LoraError, match="trained on gpt2-medium, not on tiny"):
        import_adapter(adapter, out, "tiny", None)
    change(adapter, base_model_name_or_path=None)
    respell(adapter, lambda tensors: tensors)
    with pytest.raises(LoraError, match="the model takes"):
        import_adapter(adapter, out, "tiny", None)
    assert not out.exists()
    # Without our metadata an unknown base is taken at the user's word.
    import_adapter(adapter, out, str(other), None)
    assert read_lora(out)[1].fingerprint == load_model(other, "cpu").fingerprint
