"""Base weights: folders to and from transformers, damage, and the hub played by a local server."""

import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from mingpt_prefix.checkpoints import pretrained as weights
from mingpt_prefix.checkpoints.hf_format import read_config
from mingpt_prefix.checkpoints.pretrained import (
    choose_device,
    choose_dtype,
    fingerprint,
    load_model,
    save_model,
    weights_at_hand,
)
from mingpt_prefix.config import MODELS, ModelConfig
from mingpt_prefix.data.tokenizer import load_tokenizer, tokenizer_of
from mingpt_prefix.errors import ConfigError, DataError, WeightsError
from mingpt_prefix.generation.decoding import generate
from mingpt_prefix.model import GPT2

CONFIG = ModelConfig(2, 3, 24, vocab_size=61, n_positions=40, eos_token_id=60, tokenizer="tiny")
IDS = [torch.tensor([3, 1, 4, 1, 5, 9, 2, 6]), torch.tensor([60, 2, 7])]


def make_model(seed: int = 0, config: ModelConfig = CONFIG) -> GPT2:
    """Random biases and norms too, all wide enough to tell one computation from another."""
    model = GPT2(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.2, generator=generator)
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(make_model(), tmp_path / "model")
    return tmp_path / "model"


def error_of(folder: Path | str, kind: type[Exception] = WeightsError, **settings) -> str:
    with pytest.raises(kind) as caught:
        load_model(folder, **settings)
    assert str(caught.value).isprintable() and str(caught.value)
    return str(caught.value)


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


# Folders


def test_round_trip(folder: Path) -> None:
    source, before = make_model(), torch.get_rng_state()
    model = load_model(str(folder))
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.name, model.config) == ("", CONFIG)
    assert model.fingerprint == fingerprint(model) == fingerprint(source)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    for ours, theirs in zip(model.logits(IDS), source.logits(IDS), strict=True):
        assert torch.equal(ours, theirs)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    save_model(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_fingerprint_knows_every_tensor() -> None:
    model = make_model()
    seen = {fingerprint(model)}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1
        seen.add(fingerprint(model))
    assert len(seen) == len(list(model.parameters())) + 1


def test_dtypes(tmp_path: Path) -> None:
    save_model(make_model(), tmp_path / "half", torch.float16)
    models = {kind: load_model(tmp_path / "half", dtype=kind) for kind in weights.DTYPES}
    assert {kind: m.wte.weight.dtype for kind, m in models.items()} == weights.DTYPES
    assert len({m.fingerprint for m in models.values()}) == 1
    assert models["fp32"].fingerprint == fingerprint(models["fp32"]) != fingerprint(make_model())
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    for kind in weights.DTYPES.values():
        assert load_model(tmp_path / "half", dtype=kind).wte.weight.dtype == kind
        name = str(kind).removeprefix("torch.")
        assert choose_dtype(name, torch.device("cpu")) == choose_dtype(f"torch.{name}", "cpu")
    assert choose_dtype("half", torch.device("cpu")) == torch.float16


@pytest.mark.parametrize(
    "setting",
    [
        {"device": "gpu"},
        {"device": "meta"},
        {"dtype": "int8"},
        {"dtype": "Tensor"},
        {"attention": "fast"},
    ],
)
def test_unknown_settings(folder: Path, setting: dict[str, str]) -> None:
    (value,) = setting.values()
    assert f"'{value}'" in error_of(folder, ConfigError, **setting)


def test_device_auto() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    "name",
    [
        "gtp2",
        "",
        "no/such/folder",
        "nul\0",
        "x" * 5000,
        "a\nb",
        "gpt2\n",
        "a--b",
        "a/..",
        "é",
        "/a",
    ],
)
def test_unknown_model(name: str) -> None:
    message = error_of(name)
    assert "folder" in message and all(known in message for known in MODELS)


def test_save_leaves_other_files_alone(folder: Path) -> None:
    (folder / "notes.txt").write_text("dear")
    with pytest.raises(WeightsError, match="not replaced, for it holds notes.txt"):
        save_model(make_model(), folder)
    with pytest.raises(WeightsError, match="notes.txt"):
        save_model(make_model(), folder / "notes.txt" / "below")
    assert (folder / "notes.txt").read_text() == "dear"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_failed_save_keeps_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = (folder / "model.safetensors").read_bytes()

    def full(*args, **kwargs) -> None:
        raise OSError(28, "No space left on device")

    for broken in ("save_file", "swap_in"):
        with monkeypatch.context() as patch:
            patch.setattr(weights, broken, full)
            with pytest.raises(WeightsError, match="No space left on device"):
                save_model(make_model(1), folder)
    assert (folder / "model.safetensors").read_bytes() == first
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


# transformers


def hf_model(seed: int = 0, **changes):
    transformers = pytest.importorskip("transformers")
    shape = dict(n_layer=2, n_head=3, n_embd=24, vocab_size=61, n_positions=40)
    config = transformers.GPT2Config(
        **shape | {"eos_token_id": 60, "bos_token_id": 60, "initializer_range": 0.2} | changes
    )
    torch.manual_seed(seed)
    return transformers.GPT2LMHeadModel(config).eval()


def assert_same_logits(model: GPT2, peer) -> None:
    for ids, ours in zip(IDS, model.logits(IDS), strict=True):
        torch.testing.assert_close(ours, peer(ids[None]).logits[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_transformers_saves_we_load(tmp_path: Path, shard: str) -> None:
    peer = hf_model()
    peer.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "20KB")
    model = load_model(tmp_path)
    assert model.config.tokenizer is None
    assert_same_logits(model, peer)


def test_we_save_transformers_loads(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    peer, report = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_logits(load_model(folder), peer.eval())
    assert (peer.config.eos_token_id, peer.config.activation_function) == (60, "gelu_new")


@pytest.mark.parametrize(
    "changes",
    [
        *({"activation_function": name} for name in ("gelu_pytorch_tanh", "gelu_fast")),
        *({"eos_token_id": eos, "bos_token_id": eos} for eos in (None, 50256, -1)),
        {"eos_token_id": [60], "pad_token_id": 61},
        {"architectures": None, "dtype": None},
    ],
)
def test_what_else_transformers_loads(tmp_path: Path, changes: dict) -> None:
    hf_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    text = json.dumps(json.loads(path.read_text()) | changes)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    model = load_model(tmp_path)
    path.write_text(text)  # transformers does not read a byte order mark
    assert_same_logits(model, sys.modules["transformers"].GPT2LMHeadModel.from_pretrained(tmp_path))
    said = generate(model, IDS, max_new_tokens=2)
    assert all(len(ids) == 2 or model.config.eos_token_id == 60 for ids in said)
    save_model(model, tmp_path / "again")
    assert load_model(tmp_path / "again").config == model.config


def test_sizes_under_their_other_names(folder: Path) -> None:
    names = {"n_layer": "num_hidden_layers", "n_embd": "hidden_size"}
    config = json.loads((folder / "config.json").read_text())
    renamed = {names.get(name, name): value for name, value in config.items()}
    (folder / "config.json").write_text(json.dumps(renamed))
    assert load_model(folder).config == CONFIG
    # What is left out is GPT-2's own.
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    assert read_config(folder / "config.json") == ModelConfig()


@pytest.mark.parametrize("size", [50258, 50304, 50257])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_padded_vocabulary(tmp_path: Path, size: int, beams: int) -> None:
    """GPT-2's tokenizer, with rows behind it that are likeliest of all, and never generated."""
    peer = hf_model(n_layer=1, vocab_size=size, eos_token_id=50256)
    padding = peer.transformer.wte.weight.data[50257:]
    padding[:] = 10 * peer.transformer.ln_f.weight.data.sign()
    peer.transformer.ln_f.bias.data += 1.0
    peer.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert (model.config.vocab_size, model.config.tokenizer) == (size, "gpt2")
    assert (model.config.n_tokens, len(model.padding)) == (50257, size - 50257)
    assert_same_logits(model, peer)
    assert size == 50257 or all(int(x[-1].argmax()) >= 50257 for x in model.logits(IDS))
    said = generate(model, IDS, beams=beams, max_new_tokens=6)
    assert max(map(max, said)) < 50257
    words = {"bad_words_ids": [[i] for i in range(50257, size)] or None, "num_beams": beams}
    for ids, ours in zip(IDS, said, strict=True):
        theirs = peer.generate(
            ids[None], max_new_tokens=6, do_sample=False, pad_token_id=50256, **words
        )
        assert theirs[0, len(ids) :].tolist() == ours
    save_model(model, tmp_path / "again")
    assert load_model(tmp_path / "again").config == model.config


def gpt2_words() -> dict[str, int]:
    """GPT-2's vocabulary as its vocab.json spells it."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    try:
        encoding = load_tokenizer("gpt2").encoding
    except DataError as error:
        pytest.skip(str(error))
    letters = bytes_to_unicode()
    tokens = (encoding.decode_single_token_bytes(i) for i in range(50256))
    words = {"".join(map(letters.__getitem__, token)): i for i, token in enumerate(tokens)}
    return words | {"<|endoftext|>": 50256}


def test_a_tokenizer_beside_the_model(tmp_path: Path) -> None:
    """GPT-2's is taken, whatever was added to it; with another one the text would be nonsense."""
    hf_model(n_layer=1, n_embd=3, vocab_size=60_000).save_pretrained(tmp_path)
    assert load_model(tmp_path).config.tokenizer is None  # too large to be padding
    words = gpt2_words()
    others = {f"w{i}": i for i in range(50257)}
    added = words | {"[PAD]": 50257}
    for file, content, name in (
        ("tokenizer.json", {"model": {"vocab": words}}, "gpt2"),
        ("tokenizer.json", {"model": {"vocab": others}}, None),
        ("tokenizer.json", {"model": {"vocab": [["a", 0.5]]}}, None),
        ("vocab.json", added, "gpt2"),
        ("vocab.json", others, None),
    ):
        (tmp_path / file).write_text(json.dumps(content), encoding="utf-8")
        assert load_model(tmp_path).config.tokenizer == name
    with pytest.raises(ConfigError, match="tokenizer that is not known"):
        tokenizer_of(load_model(tmp_path).config)


def test_sample_on_a_padded_vocabulary(tmp_path: Path, sample, capsys) -> None:
    peer = hf_model(n_layer=1, vocab_size=50304, eos_token_id=None)
    peer.transformer.wte.weight.data[50257:] *= 5
    peer.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(gpt2_words()), encoding="utf-8")
    how = ["--max-new-tokens", "5", "--temperature", "1", "--num-return-sequences", "9"]
    assert sample.main(["--table", "name[A]", "--model", str(tmp_path), *how]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9


def test_tokenizer_of_a_folder(tmp_path: Path, folder: Path) -> None:
    assert load_model(folder).config.tokenizer == "tiny"
    edit_config(folder, mingpt_prefix_tokenizer=None)
    assert load_model(folder).config.tokenizer is None
    hf_model(n_layer=1, n_embd=3, vocab_size=50257).save_pretrained(tmp_path / "wide")
    assert load_model(tmp_path / "wide").config.tokenizer == "gpt2"


def hub_form(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the hub's file: no `transformer.`, no head, masks among the weights."""
    mask = torch.ones(40, 40).tril().view(1, 1, 40, 40)
    plain = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    return plain | {f"h.{layer}.attn.bias": mask.clone() for layer in range(2)}


def test_names_of_all_ages(folder: Path) -> None:
    expected = load_model(folder).fingerprint

    def age(tensors: dict[str, torch.Tensor]) -> None:
        plain = hub_form(tensors)
        tensors.clear()
        tensors.update(plain)
        tensors["h.1.attn.masked_bias"] = torch.tensor(-10000, dtype=torch.int64)
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()

    edit_tensors(folder, age)
    assert load_model(folder).fingerprint == expected


# Damage


def drop(*names: str):
    return lambda tensors: [tensors.pop(f"transformer.{name}") for name in names]


def put(name: str, value: torch.Tensor):
    return lambda tensors: tensors.update({name: value})


C_ATTN = "transformer.h.0.attn.c_attn.weight"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (drop("ln_f.bias"), "missing ln_f.bias"),
        (lambda tensors: tensors.clear(), "missing .*, .*, .* and 25 more"),
        (put("transformer.h.2.ln_1.bias", torch.zeros(24)), "unexpected h.2.ln_1.bias"),
        (put("transformer.h.0.attn.c_attn.lora", torch.zeros(2)), "unexpected .*c_attn.lora"),
        (put("a\nb", torch.zeros(2)), r"unexpected a\\nb"),
        (put("wte.weight", torch.zeros(61, 24)), "two tensors 'wte.weight'"),
        (
            put(C_ATTN, torch.zeros(72, 24)),
            r"h.0.attn.c_attn.weight has shape \(72, 24\), where \(24, 72\)",
        ),
        (put(C_ATTN, torch.tensor(1.0)), r"c_attn.weight has shape \(\)"),
        (put(C_ATTN, torch.zeros(24, 72, dtype=torch.int8)), "c_attn.weight has dtype I8"),
        (put(C_ATTN, torch.zeros(24, 72, dtype=torch.complex64)), "c_attn.weight has dtype C64"),
        (put(C_ATTN, torch.full((24, 72), torch.nan)), "c_attn.weight holds NaN"),
        (put(C_ATTN, torch.full((24, 72), torch.inf)), "c_attn.weight holds NaN or infinite"),
        (put("lm_head.weight", torch.zeros(61, 24)), "lm_head.weight is not wte.weight"),
        (put("lm_head.weight", torch.zeros(60, 24)), r"lm_head.weight has shape \(60, 24\)"),
    ],
)
def test_wrong_tensors(folder: Path, change, what: str) -> None:
    edit_tensors(folder, change)
    assert re.search(what, error_of(folder))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model_type": "gpt_neo"}, "GPT-2 only: model_type is 'gpt_neo'"),
        ({"model_type": "absent"}, "model_type is None"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"n_inner": 100}, "n_inner is 100"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"n_layer": None}, "n_layer must be a whole number"),
        ({"n_layer": "absent"}, "missing h.10.attn.c_attn.bias"),
        ({"n_layer": 10**9}, "n_layer must be a whole number"),
        ({"n_layer": True}, "n_layer must be a whole number"),
        ({"n_embd": -24}, "n_embd must be a whole number"),
        ({"n_head": 5}, "n_embd 24 is not a multiple of n_head 5"),
        ({"n_layer": 3}, "missing h.2.attn.c_attn.bias"),
        ({"n_layer": 1}, "unexpected h.1.attn.c_attn.bias"),
        ({"eos_token_id": 61}, "eos_token_id 61 is outside the vocabulary of 61"),
        ({"eos_token_id": None}, "eos_token_id must be a whole number"),
        ({"eos_token_id": [60, 59]}, "eos_token_id must be a whole number"),
        ({"layer_norm_epsilon": "x\n"}, "layer_norm_epsilon must lie in"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon must lie in"),
        ({"mingpt_prefix_tokenizer": 7}, "mingpt_prefix_tokenizer must be a name"),
    ],
)
def test_wrong_config(folder: Path, changes: dict, what: str) -> None:
    edit_config(folder, **changes)
    assert what in error_of(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", "[" * 100_000, '{"n_layer": ' + "1" * 5000 + "}", "\xff"]
)
def test_broken_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json: " in error_of(folder)


def test_n_inner_spelled_out(folder: Path) -> None:
    edit_config(folder, n_inner=96)
    assert load_model(folder).config == CONFIG


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors"])
def test_missing_files(folder: Path, gone: str) -> None:
    (folder / gone).unlink()
    assert gone in error_of(folder)
    (folder / gone).mkdir()
    assert gone in error_of(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickled weights are not read" in error_of(folder)


def test_truncated_and_edited_files(folder: Path) -> None:
    """Every damage gives one line, or a model whose fingerprint tells that it is another."""
    path = folder / "model.safetensors"
    whole, expected = path.read_bytes(), load_model(folder).fingerprint
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for length in (0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert str(path) in error_of(folder)
    path.write_bytes(whole + b"x")
    assert str(path) in error_of(folder)
    generator = torch.Generator().manual_seed(0)
    n_refused = 0
    for limit in (8, header, len(whole)):
        for at in torch.randint(limit, (60,), generator=generator).tolist():
            bit = 1 << int(torch.randint(8, (), generator=generator))
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            try:
                # A bit of the metadata alone changes nothing that is read.
                assert load_model(folder).fingerprint != expected or at < header
            except WeightsError as error:
                assert str(error).isprintable()
                n_refused += 1
    assert n_refused > 100


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 1 << 40]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "FLOAT", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {},
    ],
)
def test_lying_headers(folder: Path, entry: dict) -> None:
    header = json.dumps({"wte.weight": entry}).encode()
    for claimed in (len(header), 1 << 63, 1 << 30):
        data = struct.pack("<Q", claimed) + header + bytes(8)
        (folder / "model.safetensors").write_bytes(data)
        error_of(folder)


@pytest.mark.parametrize(
    ("index", "what"),
    [
        ({}, "no weight_map"),
        ({"weight_map": ["model.safetensors"]}, "no weight_map"),
        ({"weight_map": {"wte.weight": "../other/model.safetensors"}}, "is no file name"),
        ({"weight_map": {"wte.weight": "/etc/passwd"}}, "is no file name"),
        ({"weight_map": {"wte.weight": ".."}}, "is no file name"),
        ({"weight_map": {"wte.weight": "a\\b.safetensors"}}, "is no file name"),
        ({"weight_map": {"wte.weight": 5}}, "is no file name"),
        ({"weight_map": {"wte.weight": "gone.safetensors"}}, "gone.safetensors: no such file"),
        ({"weight_map": {"wte.weight": "part.safetensors"}}, "missing h.0.attn.c_attn.bias"),
    ],
)
def test_wrong_index(folder: Path, index: dict, what: str) -> None:
    (folder / "model.safetensors").unlink()
    save_file({"wte.weight": torch.zeros(61, 24)}, folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert what in error_of(folder)


# The hub

# Four repositories, each with a fate of its own on the server below.
DRIVER = """
import json, sys, time
from mingpt_prefix import config
from mingpt_prefix.checkpoints import pretrained as weights
from mingpt_prefix.errors import WeightsError
assert "huggingface_hub" not in sys.modules
for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
    config.MODELS[name] = config.ModelConfig(2, 3, 24, 61, 40, eos_token_id=60)
for call in sys.argv[1:]:
    what, name = call.split(":")
    start = time.perf_counter()
    try:
        if what == "load":
            model = weights.load_model(name)
            answer = [model.name, model.fingerprint]
        else:
            answer = weights.weights_at_hand(name)
    except WeightsError as error:
        answer = str(error)
    print(json.dumps([answer, time.perf_counter() - start]))
"""


def ask(home: Path, endpoint: str, *calls: str, **env: str) -> list[tuple[object, float]]:
    """Run the calls in a fresh process, for huggingface_hub reads its settings when imported."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_"))}
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "no_proxy": "*", **env}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *calls],
        env=clean | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "resume" not in done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


class Hub(ThreadingHTTPServer):
    """gpt2 is served; gpt2-medium breaks off the first time; gpt2-large is damaged; no others."""

    daemon_threads = True

    def __init__(self, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.bodies = {name: body for name in ("gpt2", "gpt2-medium")}
        self.bodies["gpt2-large"] = bytes(len(body))
        self.heads: list[str] = []
        self.gets: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(send_body=False)

    def do_GET(self) -> None:
        self.answer(send_body=True)

    def answer(self, send_body: bool) -> None:
        match = re.fullmatch(
            r"/openai-community/([\w-]+)/resolve/main/model.safetensors", self.path
        )
        name = match[1] if match else ""
        body = self.server.bodies.get(name)
        if name:
            (self.server.gets if send_body else self.server.heads).append(name)
        # Each load asks for the head twice; some versions go on by themselves after a break.
        broken = send_body and name == "gpt2-medium" and self.server.heads.count(name) <= 2
        if body is None or (broken and self.server.gets.count(name) > 1):
            self.send_response(404 if body is None else 503)
            if body is None:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if span := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(span[1])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{name}-etag"')
        self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if send_body:
            self.wfile.write(body[start : len(body) // 2] if broken else body[start:])
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub_body() -> bytes:
    named = {f"transformer.{n}": p.detach() for n, p in make_model().named_parameters()}
    return save(hub_form(named), metadata={"format": "pt"})


@pytest.fixture
def hub(hub_body: bytes) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    with Hub(hub_body) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def closed_port() -> str:
    """An address where nothing listens."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return f"http://127.0.0.1:{server.server_port}"


def test_hub(hub: Hub, closed_port: str, tmp_path: Path) -> None:
    good = ["gpt2", fingerprint(make_model())]
    calls = ["at_hand:gpt2", "load:gpt2", "at_hand:gpt2"]
    calls += ["load:gpt2-medium", "load:gpt2-medium", "load:gpt2-large"]
    calls += ["at_hand:gpt2-xl", "load:gpt2-xl"]
    answers = [answer for answer, _ in ask(tmp_path, hub.url, *calls)]
    assert answers[0] == [True, "can be downloaded"]
    assert answers[1] == good
    assert answers[2] == [True, "in the Hugging Face cache"]
    assert "gpt2-medium: " in answers[3] and "broke off (" in answers[3]
    assert answers[4] == ["gpt2-medium", good[1]]
    assert "model.safetensors: " in answers[5] and "delete the file" in answers[5]
    assert answers[6][0] is False and "404" in answers[6][1]
    assert "404" in answers[7]
    assert all(isinstance(a, list) or a.isprintable() for a in answers)
    assert (hub.gets.count("gpt2"), hub.gets.count("gpt2-xl")) == (1, 0)

    # Cached: neither the network nor leave to use it is needed.
    for env in ({}, {"HF_HUB_OFFLINE": "1"}):
        (loaded, _), (refused, seconds) = ask(
            tmp_path, closed_port, "load:gpt2", "load:gpt2-xl", **env
        )
        assert loaded == good
        assert ("HF_HUB_OFFLINE is set" if env else "cannot be reached") in refused
        assert "not in the Hugging Face cache" in refused and seconds < 4


def test_no_hub(closed_port: str, tmp_path: Path) -> None:
    calls = ("at_hand:tiny", "at_hand:gpt2", "load:gpt2")
    tiny, at_hand, load = ask(tmp_path / "new", closed_port, *calls)
    assert tiny[0] == [True, "part of the package"]
    assert at_hand[0][0] is False and at_hand[0][1].startswith("127.0.0.1")
    assert load[0].startswith("gpt2: ") and load[0].isprintable()
    assert at_hand[1] + load[1] < 4


class SilentHandler(BaseHTTPRequestHandler):
    def handle(self) -> None:
        time.sleep(8)


def test_silent_hub(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    with ThreadingHTTPServer(("127.0.0.1", 0), SilentHandler) as server:
        server.daemon_threads, server.block_on_close = True, False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        ((answer, seconds),) = ask(
            tmp_path, f"http://127.0.0.1:{server.server_port}", "at_hand:gpt2"
        )
        server.shutdown()
        thread.join()
    assert answer[0] is False and seconds < 4


def test_at_hand_of_the_embedded_model() -> None:
    assert weights_at_hand("tiny")[0]
