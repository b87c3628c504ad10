"""What a prefix may also be: an infix, virtual tokens, rows begun from words, rows dropped out."""

import json
from pathlib import Path

import pytest
import torch

import train
from mingpt_prefix.adapters.learned import make_encoder, text_tokens
from mingpt_prefix.adapters.prefix_file import read_prefix
from mingpt_prefix.batch import Encoded, PrefixKV, epoch_order, pack
from mingpt_prefix.checkpoints.pretrained import save_model
from mingpt_prefix.config import Decoding, ModelConfig, TrainConfig
from mingpt_prefix.data.tables import parse_table
from mingpt_prefix.errors import ConfigError
from mingpt_prefix.evaluation.pipeline import open_pipeline
from mingpt_prefix.evaluation.sample_config import SampleConfig
from mingpt_prefix.generation.decoding import generate
from mingpt_prefix.model import GPT2
from mingpt_prefix.prefix import PrefixEncoder, VirtualTokens

SHAPE = ModelConfig(3, 3, 24, vocab_size=4096, n_positions=64, eos_token_id=4095, tokenizer="tiny")
CONFIG = TrainConfig(
    mode="prefix", model="little", data=("none",), lr=0.01, epochs=1, batch_size=4,
    micro_batch_size=4, prefix_length=5, mid_dim=8,
)  # fmt: skip
QUICK = ["--device", "cpu", "--epochs", "2", "--batch-size", "8", "--evals", "1"]


def with_(**changes) -> TrainConfig:
    return TrainConfig(**{**vars(CONFIG), **changes})


@pytest.fixture(scope="module")
def model() -> GPT2:
    model = GPT2(SHAPE)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3, generator=generator)
    return model.double().requires_grad_(False).eval()


@pytest.fixture(scope="module")
def peer(model: GPT2, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("peer")
    save_model(model, folder / "model")
    loaded = transformers.GPT2LMHeadModel.from_pretrained(folder / "model").double().eval()
    loaded.load_state_dict({f"transformer.{k}": v for k, v in model.state_dict().items()}, False)
    return loaded


@pytest.mark.parametrize("reparam", [True, False])
def test_rows_begin_as_those_of_words(model: GPT2, peer, reparam: bool) -> None:
    text = "table to text:"
    ids = text_tokens(text, SHAPE)
    config = with_(init_text=text, prefix_length=len(ids), reparam=reparam)
    encoder = make_encoder(config, model)
    cache = peer(torch.tensor([ids])).past_key_values
    for layer in range(SHAPE.n_layer):
        for rows, expected in zip(
            encoder().kv[layer], (cache.layers[layer].keys, cache.layers[layer].values), strict=True
        ):
            torch.testing.assert_close(
                rows.double(), expected[0].transpose(0, 1), atol=1e-5, rtol=0
            )
    # What is learned moves them.
    encoder().kv.sum().backward()
    assert any(p.grad.any() for p in encoder.parameters())
    longer = make_encoder(with_(init_text=text, prefix_length=2 * len(ids)), model)().kv
    torch.testing.assert_close(longer[:, :, : len(ids)], encoder().kv, atol=1e-5, rtol=1e-5)


def test_rows_begin_as_those_of_examples(model: GPT2, peer) -> None:
    train_set = [Encoded(torch.tensor([n, n + 1, n + 2, 4095]), 1) for n in (10, 20, 30)]
    for seed in (0, 1):
        config = with_(init="examples", prefix_length=6, seed=seed)
        rows = make_encoder(config, model, train_set)().kv
        order = epoch_order(3, seed, 0).tolist()
        ids = [i for number in order for i in train_set[number].ids.tolist()][-6:]
        cache = peer(torch.tensor([ids])).past_key_values
        expected = torch.stack([torch.cat([x.keys, x.values]) for x in cache.layers])
        torch.testing.assert_close(rows.double(), expected.transpose(2, 3), atol=1e-5, rtol=0)
    # Fewer tokens in the training set than rows: it is gone through again.
    longer = make_encoder(with_(init="examples", prefix_length=30), model, train_set)().kv
    assert longer.shape[2] == 30
    with pytest.raises(ConfigError, match="exclude each other"):
        make_encoder(with_(init="examples", init_text="words"), model, train_set)


def test_virtual_tokens_are_as_good_as_tokens_in_front(model: GPT2, peer) -> None:
    encoder = VirtualTokens(model, 4, seed=1)
    ids = torch.tensor([7, 300, 12, 9])
    (ours,) = model.logits([ids], encoder())
    embeddings = torch.cat([encoder.embedding.double(), peer.transformer.wte(ids)])
    expected = peer(inputs_embeds=embeddings[None]).logits[0, 4:]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)  # the rows are float32
    (gradient,) = torch.autograd.grad(ours.square().sum(), encoder.embedding)
    (wanted,) = torch.autograd.grad(expected.square().sum(), encoder.embedding)
    torch.testing.assert_close(gradient, wanted, atol=0, rtol=1e-3)
    assert [name for name, _ in encoder.named_parameters()] == ["embedding"]
    words = VirtualTokens(model, 2, seed=1, ids=[3, 8])
    assert torch.equal(words.embedding, model.wte.weight[[3, 8]].float())


def test_an_infix_is_not_seen_by_the_table(model: GPT2) -> None:
    prefix = make_encoder(with_(init_scale=30.0), model)()
    examples = [torch.tensor([5, 6, 7, 4095, 8, 9]), torch.tensor([1, 2, 4095, 3])]
    first = [3, 2]
    plain = model.logits(examples)
    infixed = model.logits(examples, prefix, prefix_from=first)
    for before, after, start in zip(plain, infixed, first, strict=True):
        torch.testing.assert_close(before[:start], after[:start], atol=1e-12, rtol=0)
        assert (before[start:] - after[start:]).abs().amax(-1).min() > 1e-3
    batch = pack([Encoded(e, s + 1) for e, s in zip(examples, first, strict=True)], 5, "infix")
    assert batch.layout.prefix_from.tolist() == first
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]


@pytest.mark.parametrize("beams", [1, 3])
def test_generating_behind_an_infix(model: GPT2, beams: int) -> None:
    prefix = make_encoder(with_(init_scale=30.0), model)()
    prompts = [[5, 6, 7, 4095], [1, 2, 4095], [9, 4095]]
    first = [len(prompt) - 1 for prompt in prompts]
    new = generate(
        model, prompts, prefix, prefix_from=first, beams=beams, max_new_tokens=8, eos=None
    )
    assert new == [
        generate(model, [p], prefix, prefix_from=[f], beams=beams, max_new_tokens=8, eos=None)[0]
        for p, f in zip(prompts, first, strict=True)
    ]
    assert new != generate(model, prompts, prefix, beams=beams, max_new_tokens=8, eos=None)
    for prompt, start, ids in zip(prompts, first, new, strict=True):
        assert len(ids) == 8
        if beams == 1:
            (logits,) = model.logits([[*prompt, *ids]], prefix, prefix_from=[start])
            assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == ids


def test_dropped_rows(model: GPT2) -> None:
    encoder = make_encoder(with_(prefix_dropout=0.5), model)
    torch.manual_seed(0)
    dropped = encoder.train()().kv
    share = float((dropped == 0).double().mean())
    assert 0.4 < share < 0.6
    assert torch.equal(encoder.eval()().kv, make_encoder(CONFIG, model)().kv)
    where = dropped != 0
    torch.testing.assert_close(dropped[where], 2 * encoder().kv[where])


def test_settings_that_do_not_go_together(model: GPT2) -> None:
    for changes in ({"reparam": False}, {"prefix_dropout": 0.1}):
        with pytest.raises(ConfigError, match="depth embedding"):
            make_encoder(with_(depth="embedding", **changes), model)
    with pytest.raises(ConfigError, match="lie in 1 to 63"):
        make_encoder(with_(depth="embedding", prefix_length=64), model)
    nameless = ModelConfig(**{**vars(SHAPE), "tokenizer": None})
    with pytest.raises(ConfigError, match="tokenizer"):
        text_tokens("words", nameless)


@pytest.mark.parametrize(
    ("flags", "length"),
    [
        (["--placement", "infix"], 5),
        (["--depth", "embedding", "--lr", "0.1"], 5),
        (["--init-text", "a restaurant's table, and a sentence:"], None),
        (["--init", "examples"], 5),
        (["--prefix-dropout", "0.1", "--limit-examples", "17"], 5),
    ],
    ids=lambda value: value[0][2:] if isinstance(value, list) else "",
)
def test_runs(flags, length, small_model, small_data, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["--model", str(small_model), "--data", str(small_data), *QUICK, *flags]
    argv += ["--prefix-length", str(length)] if length else []
    assert train.main([*argv, "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "--limit-examples" not in flags or "17 examples, 6 steps" in out
    prefix, info = read_prefix(tmp_path / "run" / "prefix.safetensors")
    assert info.length == prefix.kv.shape[2] == (length or len(text_tokens(flags[1], SHAPE)))
    assert info.placement == ("infix" if "infix" in flags else "prefix")
    losses = [json.loads(line)["loss"] for line in open("run/log.jsonl")]
    assert losses[-1] < losses[0]
    # What the run said of its first dev table, sample.py's writer says too.
    writer = open_pipeline(SampleConfig(run=Path("run"), model=str(small_model)))
    assert writer.placement == info.placement
    said = next(line for line in out.splitlines() if line.startswith("  output"))
    table = next(line for line in out.splitlines() if line.startswith("  table"))
    (text,) = writer.write([parse_table(table.split(maxsplit=1)[1])], Decoding())
    assert text == said.split(maxsplit=1)[1] if len(said.split()) > 1 else text == ""


def test_a_saved_start_is_not_trained(model: GPT2) -> None:
    encoder = make_encoder(with_(init_text="words"), model)
    assert isinstance(encoder, PrefixEncoder) and "start" not in encoder.state_dict()
    assert isinstance(encoder(), PrefixKV)
