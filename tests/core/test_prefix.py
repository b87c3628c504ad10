"""The prefix: its encoder, its file, and the refusal of what does not fit or is damaged."""

import dataclasses
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from mingpt_prefix.adapters import adapter_file
from mingpt_prefix.adapters.prefix_file import (
    PrefixInfo,
    check_prefix,
    load_prefix,
    read_prefix,
    save_prefix,
)
from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.checkpoints.pretrained import fingerprint
from mingpt_prefix.config import ModelConfig
from mingpt_prefix.errors import ConfigError, PrefixError
from mingpt_prefix.model import GPT2
from mingpt_prefix.prefix import PrefixEncoder

CONFIG = ModelConfig(2, 3, 24, vocab_size=61, n_positions=40, eos_token_id=60, tokenizer="tiny")
P = 4
SHAPE = (2, 2, P, 3, 8)
INFO = PrefixInfo("gpt2", "0a" * 32, P, "bar-v1", "prefix", {"lr": 8e-5, "data": ["e2e"]})
FIELDS = dataclasses.asdict(INFO) | {"version": 1}  # which has no SHA-256


def some_rows(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prefix.safetensors"


def error_of(path: Path) -> str:
    with pytest.raises(PrefixError) as caught:
        read_prefix(path)
    message = str(caught.value)
    assert message.isprintable() and message.startswith(str(path)[:20])
    return message


# The encoder


@pytest.mark.parametrize("reparam", [True, False])
def test_shape_and_gradient(reparam: bool) -> None:
    encoder = PrefixEncoder(CONFIG, P, mid_dim=16, reparam=reparam)
    out = encoder()
    assert tuple(out.kv.shape) == SHAPE and out.starts.tolist() == [0, P]
    assert out.kv.dtype == torch.float32
    out.kv.square().sum().backward()
    sizes = {name: tuple(parameter.shape) for name, parameter in encoder.named_parameters()}
    assert all(parameter.grad.any() for parameter in encoder.parameters())
    if not reparam:
        assert sizes == {f"rows.{i}": (P, 8) for i in range(2 * 2 * 3)}
        # Layer by layer, keys then values, head by head.
        assert torch.equal(
            encoder.rows[1 * 6 + 1 * 3 + 2] * encoder.lr_scale[1, 0, 0], out.kv[1, 1, :, 2]
        )
        return
    assert sizes == {
        "embedding.weight": (P, 24),
        "transform.0.weight": (16, 24),
        "transform.0.bias": (16,),
        "transform.2.weight": (96, 16),
        "transform.2.bias": (96,),
    }
    # Row p: layer by layer, keys then values, head by head.
    row = encoder.transform(encoder.embedding.weight)[1]
    assert torch.equal(row.view(2, 2, 3, 8), out.kv[:, :, 1])


@pytest.mark.parametrize("reparam", [True, False])
def test_seed_decides_and_global_state_does_not(reparam: bool) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (PrefixEncoder(CONFIG, P, 16, reparam, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first().kv, again().kv)
    assert not torch.isclose(first().kv, other().kv).any(dim=-1).all()


def test_initial_values_are_as_wide_as_torchs_own() -> None:
    config = ModelConfig(4, 4, 64, vocab_size=61, n_positions=999, eos_token_id=60)
    encoder = PrefixEncoder(config, 500)
    assert encoder.embedding.weight.std().item() == pytest.approx(1, rel=0.02)
    for linear in (encoder.transform[0], encoder.transform[2]):
        peer = torch.nn.Linear(linear.in_features, linear.out_features)
        assert linear.weight.std().item() == pytest.approx(peer.weight.std().item(), rel=0.02)
        assert linear.weight.abs().max() <= linear.in_features**-0.5
    direct = PrefixEncoder(config, 500, reparam=False)().kv.std().item()
    assert direct == pytest.approx(encoder().kv.std().item(), rel=0.2)


def test_full_precision_under_autocast() -> None:
    encoder = PrefixEncoder(CONFIG, P)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder().kv, encoder().kv.float())
    assert torch.equal(encoder().kv, PrefixEncoder(CONFIG, P)().kv)


@pytest.mark.parametrize(("length", "mid_dim"), [(0, 8), (-1, 8), (40, 8), (4, 0)])
def test_impossible_sizes(length: int, mid_dim: int) -> None:
    with pytest.raises(ConfigError, match="prefix-length|mid_dim"):
        PrefixEncoder(CONFIG, length, mid_dim)
    assert PrefixEncoder(CONFIG, 39, 8)().lengths.tolist() == [39]


# The file


def test_round_trip(path: Path) -> None:
    save_prefix(path, some_rows().requires_grad_(), INFO)
    out, info = read_prefix(path)
    assert torch.equal(out.kv, some_rows()) and out.starts.tolist() == [0, P]
    assert not out.kv.requires_grad
    assert info == INFO
    assert torch.equal(load_prefix(path).kv, out.kv)
    # What was read is no window on the file.
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(out.kv, some_rows())


def test_equal_prefixes_are_equal_bytes(path: Path) -> None:
    save_prefix(path, some_rows(), INFO)
    first = path.read_bytes()
    turned = dataclasses.replace(INFO, training=dict(reversed(INFO.training.items())))
    strided = some_rows().transpose(2, 3).contiguous().transpose(2, 3)
    for rows in (some_rows(), some_rows().double(), strided):
        save_prefix(path, rows, turned)
        assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("rows", "info", "what"),
    [
        (some_rows() * torch.nan, INFO, "NaN"),
        (some_rows()[0], INFO, "shape"),
        (some_rows(), dataclasses.replace(INFO, length=5), "4 rows, its length says 5"),
        (some_rows(), dataclasses.replace(INFO, fingerprint="?"), "fingerprint"),
        (some_rows(), dataclasses.replace(INFO, placement="behind"), "placement 'behind'"),
    ],
)
def test_bad_prefixes_are_not_written(path: Path, rows, info: PrefixInfo, what: str) -> None:
    with pytest.raises(PrefixError, match=what):
        save_prefix(path, rows, info)
    assert not path.exists()


def test_unwritable(path: Path) -> None:
    path.write_text("a file")
    with pytest.raises(PrefixError) as caught:
        save_prefix(path / "below", some_rows(), INFO)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


def write(path: Path, fields: object = FIELDS, rows: torch.Tensor | None = None, **more) -> None:
    """A file of any metadata and tensors."""
    text = fields if isinstance(fields, str) else json.dumps(fields)
    tensors = {"prefix_kv": some_rows() if rows is None else rows, **more}
    path.write_bytes(save(tensors, metadata={"mingpt_prefix": text}))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        (FIELDS | {"version": 3, "rank": 8}, "format 3, and this program knows up to 2"),
        (FIELDS | {"version": 2}, "SHA-256 differs"),
        (FIELDS | {"sha256": "0a" * 32}, "SHA-256 differs"),
        (FIELDS | {"sha256": []}, "SHA-256 differs"),
        (FIELDS | {"version": 0}, "format version"),
        (FIELDS | {"version": True}, "format version"),
        (FIELDS | {"version": "1"}, "format version"),
        (FIELDS | {"length": 3}, "4 rows, its length says 3"),
        (FIELDS | {"length": 4.0}, "length is not of type int"),
        (FIELDS | {"base": None}, "base is not of type str"),
        (FIELDS | {"training": []}, "training is not of type dict"),
        (FIELDS | {"fingerprint": "0A" * 32}, "fingerprint"),
        (FIELDS | {"placement": "infix\n"}, "placement 'infix"),
        (FIELDS | {"extra\n": 1}, r"extra\\n"),
        ({"version": 1}, "base, fingerprint, length"),
        ([], "format version"),
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"version": ' + "1" * 5000 + "}", "not valid JSON"),
    ],
)
def test_wrong_metadata(path: Path, fields: object, what: str) -> None:
    write(path, fields)
    with pytest.raises(PrefixError, match=what):
        read_prefix(path)
    error_of(path)


@pytest.mark.parametrize(
    "rows",
    [
        some_rows() * torch.inf,
        torch.where(some_rows() > 2, torch.nan, some_rows()),
        some_rows().half(),
        some_rows()[0],
        some_rows()[:, :1],
        torch.zeros(0, 2, P, 3, 8),
        torch.tensor(1.0),
    ],
)
def test_wrong_rows(path: Path, rows: torch.Tensor) -> None:
    write(path, rows=rows.contiguous())
    assert "prefix_kv" in error_of(path)


def nested(depth: int) -> str:
    return json.dumps(FIELDS).replace(
        '"training": {', '"training": {"a": ' + "[" * depth + "]" * depth + ", "
    )


@pytest.mark.parametrize("depth", range(900, 1100, 10))
def test_metadata_nested_as_deep_as_json_goes(path: Path, depth: int) -> None:
    write(path, nested(depth)[:-1] + ', "sha256": "' + "0a" * 32 + '"}')
    assert "damaged" in error_of(path)


def test_a_shape_of_more_than_a_number_can_hold(path: Path) -> None:
    entry = {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}
    text = json.dumps(FIELDS | {"sha256": "0a" * 32})
    header = json.dumps({"__metadata__": {"mingpt_prefix": text}, "prefix_kv": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert "damaged" in error_of(path)


def test_other_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such file" in error_of(path)
    write(path, more=torch.zeros(1))
    assert "must hold prefix_kv alone" in error_of(path)
    for metadata in (None, {"format": "pt"}, {"mingpt_prefix": json.dumps(FIELDS), "by": "me"}):
        path.write_bytes(save({"prefix_kv": some_rows()}, metadata=metadata))
        assert "not a prefix file" in error_of(path)
    for text in (b"", b"{}", b"PK\x03\x04 a pickle in a zip file", struct.pack("<Q", 1 << 62)):
        path.write_bytes(text)
        error_of(path)
    save_prefix(path, some_rows(), INFO)
    monkeypatch.setattr(adapter_file, "FILE_LIMIT", path.stat().st_size - 1)
    assert "larger than any prefix" in error_of(path)
    path.unlink()
    path.mkdir()
    assert "not a file" in error_of(path)
    with pytest.raises(PrefixError):
        read_prefix(Path("nul\0"))


def test_truncated_and_edited(path: Path) -> None:
    """Every damage gives one line."""
    save_prefix(path, some_rows(), INFO)
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    lengths = {*range(0, len(whole), 29), 8, header - 1, header, len(whole) - 1}
    for length in lengths:
        path.write_bytes(whole[:length])
        error_of(path)
    generator = torch.Generator().manual_seed(0)
    places = [*range(header), *torch.randint(header, len(whole), (100,), generator=generator)]
    for at in map(int, places):
        bit = 1 << int(torch.randint(8, (), generator=generator))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        error_of(path)


# The model it belongs to


def test_check_prefix() -> None:
    model = GPT2(CONFIG).initialize(0)
    model.name, model.fingerprint = "tiny", fingerprint(model)
    fits = dataclasses.replace(INFO, base="tiny", fingerprint=model.fingerprint)
    out = PrefixKV.from_tensor(some_rows())
    check_prefix(fits, out, model)
    with pytest.raises(PrefixError) as caught:
        check_prefix(INFO, out, model)
    assert f"of gpt2 (0a0a0a0a), not of tiny ({model.fingerprint[:8]})" in str(caught.value)
    with pytest.raises(PrefixError, match="of a folder"):
        check_prefix(dataclasses.replace(INFO, base=""), out, model)
    for rows in (some_rows()[:1], some_rows()[..., :4], some_rows()[:, :, :2]):
        with pytest.raises(PrefixError, match="shape"):
            check_prefix(fits, PrefixKV.from_tensor(rows), model)
    long = PrefixKV.from_tensor(torch.zeros(2, 2, 40, 3, 8))
    with pytest.raises(PrefixError, match="40 rows; the model has 40 positions"):
        check_prefix(dataclasses.replace(fits, length=40), long, model)


def test_a_folded_prefix_acts_as_its_encoder(path: Path) -> None:
    model = GPT2(CONFIG).initialize(0)
    encoder = PrefixEncoder(CONFIG, P)
    save_prefix(path, encoder().kv, INFO)
    ids = [torch.tensor([1, 2, 3]), torch.tensor([4])]
    expected = model.logits(ids, encoder())
    for ours, theirs in zip(model.logits(ids, load_prefix(path)), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.allclose(model.logits(ids)[0], expected[0])
