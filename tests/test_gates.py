"""Gated prefixes: what is kept is an ordinary prefix that does what the gated one did."""

from pathlib import Path

import pytest
import torch

import train
from mingpt_prefix.config import ModelConfig
from mingpt_prefix.gates import GatedPrefix, gated
from mingpt_prefix.model import GPT2
from mingpt_prefix.prefix import PrefixEncoder
from mingpt_prefix.prefix_file import PrefixInfo, load_prefix, read_prefix, save_prefix

SHAPE = ModelConfig(2, 3, 24, vocab_size=61, n_positions=40, eos_token_id=60, tokenizer=None)
INFO = PrefixInfo("tiny", "0a" * 32, 4, "text", "prefix", {})


def opened() -> GatedPrefix:
    """A gated prefix whose gates all differ."""
    prefix = GatedPrefix(PrefixEncoder(SHAPE, 4, 8, init_scale=20.0), SHAPE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        prefix.gate += 10 * torch.randn(prefix.gate.shape, generator=generator)
    return prefix


def attention_by_hand(q, k, v, rows, gates):
    """One causal attention (T, H, D) whose rows' share of the output is multiplied by `gates`."""
    keys, values = torch.cat([rows[0], k]), torch.cat([rows[1], v])
    scores = torch.einsum("thd,shd->hts", q, keys) / q.shape[-1] ** 0.5
    n_rows, n = len(rows[0]), len(q)
    scores[:, :, n_rows:] += torch.full((n, n), -torch.inf).triu(1)
    weights = scores.softmax(-1)
    weights[:, :, :n_rows] *= gates[:, None, None]
    return torch.einsum("hts,shd->thd", weights, values)


def test_a_gate_is_a_factor_of_what_a_head_takes_of_the_prefix() -> None:
    model, prefix = GPT2(SHAPE).initialize(0), opened()
    gates, rows = 1 + 0.1 * prefix.gate, prefix.encoder().kv
    tokens = torch.tensor([1, 2, 3, 4, 5])
    x = model.embed(tokens, torch.arange(4, 9))

    def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
        return attention_by_hand(*qkv.unbind(1), rows[layer], gates[layer])

    expected = model.head(model.trunk(x, attend))
    (found,) = model.logits([tokens], prefix())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - model.logits([tokens], prefix.encoder())[0]).abs().max() > 1e-3


def test_folded_is_as_unfolded(tmp_path: Path) -> None:
    model, prefix = GPT2(SHAPE).initialize(0), opened()
    save_prefix(tmp_path / "p", prefix().kv, INFO)
    ids = [torch.tensor([1, 2, 3]), torch.tensor([4])]
    kept = model.logits(ids, load_prefix(tmp_path / "p"))
    for ours, theirs in zip(kept, model.logits(ids, prefix()), strict=True):
        assert torch.equal(ours, theirs)


def test_gates_begin_at_one_and_are_learned() -> None:
    prefix = GatedPrefix(PrefixEncoder(SHAPE, 4, 8), SHAPE)
    assert torch.equal(prefix().kv, prefix.encoder().kv)
    model = GPT2(SHAPE).initialize(0)
    sum(logits.square().sum() for logits in model.logits([torch.arange(6)], prefix())).backward()
    assert prefix.gate.grad.abs().min() > 0
    kv = torch.randn(2, 2, 4, 3, 8)
    assert torch.equal(gated(kv, torch.zeros(2, 3))[:, 0], kv[:, 0])
    assert not gated(kv, torch.zeros(2, 3))[:, 1].any()


@pytest.mark.parametrize("more", [[], ["--no-reparam"], ["--depth", "embedding"]], ids=str)
def test_runs(more, small_model: Path, small_data: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model", str(small_model), "--data", str(small_data), "--device", "cpu", "--gated"]
    flags += ["--prefix-length", "5", "--max-steps", "8", "--batch-size", "8", "--evals", "1"]
    flags += ["--lr", "0.05", *more]
    assert train.main([*flags, "--out", "run"]) == 0
    prefix, info = read_prefix(tmp_path / "run" / "prefix.safetensors")
    assert info.training["gated"] is True and prefix.kv.shape[2] == info.length == 5
