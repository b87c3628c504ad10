"""LoRA: the numbers of PEFT's, beside the weights and folded into them, plain and packed."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from mingpt_prefix.accel import prepacked_linear as packed
from mingpt_prefix.adapters.lora_file import fold, folded_fingerprint
from mingpt_prefix.batch import Encoded, PackedBatch, pack
from mingpt_prefix.checkpoints.pretrained import fingerprint, load_model, save_model
from mingpt_prefix.config import TARGETS, ModelConfig
from mingpt_prefix.errors import ConfigError
from mingpt_prefix.lora import Lora, LowRank
from mingpt_prefix.model import GPT2
from mingpt_prefix.prefix import PrefixEncoder

LITTLE = ModelConfig(3, 3, 24, vocab_size=61, n_positions=64, eos_token_id=60, tokenizer=None)
# As wide as GPT-2 small: its frozen weights are packed for the processor.
WIDE = ModelConfig(2, 12, 768, vocab_size=61, n_positions=64, eos_token_id=60, tokenizer=None)
ALPHA, RANK = 12.0, 4
EXAMPLES = [Encoded(torch.arange(n) % 61, max(1, n // 2)) for n in (2, 41, 17)]


def make(shape: ModelConfig, folder: Path, dtype: str) -> GPT2:
    """A frozen model with wide random weights, read from a folder."""
    source = GPT2(shape).initialize(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_model(source, folder)
    return load_model(folder, "cpu", dtype)


def trained(model: GPT2, targets: Sequence[str], dropout: float = 0.0) -> Lora:
    """LoRA whose second matrices are no zeros any more."""
    lora = Lora(model.config, RANK, ALPHA, targets, dropout, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for b in lora.b:
            b += 0.1 * torch.randn(b.shape, generator=generator)
    return lora.to(model.wte.weight.dtype)


def plain_loss(model: GPT2, batch: PackedBatch) -> torch.Tensor:
    hidden = model(batch.tokens, batch.positions, batch.layout)
    return cross_entropy(model.head(hidden[batch.target_index]), batch.target_tokens)


def loss_of(model: GPT2, low_rank: LowRank, batch: PackedBatch | None = None) -> torch.Tensor:
    with low_rank.attached(model):
        return plain_loss(model, batch or pack(EXAMPLES))


def logits_of(model: GPT2, low_rank: LowRank, ids: Sequence, prefix=None) -> list[torch.Tensor]:
    with low_rank.attached(model):
        return model.logits(ids, prefix)


def peer_of(folder: Path, lora: Lora):
    """PEFT's LoRA on transformers' model of `folder`, with the matrices of `lora`."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    dtype = lora.a[0].dtype
    base = transformers.GPT2LMHeadModel.from_pretrained(folder).to(dtype).eval()
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=list(lora.targets),
        fan_in_fan_out=True,
    )  # fmt: skip
    model = peft.get_peft_model(base, config).to(dtype)
    for (a, b), (first, second) in zip(peer_factors(model, lora), factors(lora), strict=True):
        a.data.copy_(first.t())
        b.data.copy_(second.t())
    return model


def peer_factors(model, lora: Lora):
    """PEFT's matrices, (r, in) and (out, r), in the order of `factors`."""
    for target in lora.targets:
        for block in model.base_model.model.transformer.h:
            changed = block.get_submodule(target)
            yield changed.lora_A["default"].weight, changed.lora_B["default"].weight


def factors(lora: Lora):
    """Ours, (in, r) and (r, out): of each target, all layers."""
    for a, b in lora().factors.values():
        yield from zip(a, b, strict=True)


@pytest.mark.parametrize(
    ("shape", "dtype", "targets", "tolerance"),
    [
        (LITTLE, "fp64", ["attn.c_attn"], 1e-9),
        (LITTLE, "fp64", TARGETS, 1e-9),
        (LITTLE, "fp32", TARGETS, 1e-4),
        (WIDE, "fp32", ["attn.c_attn", "mlp.c_proj"], 1e-4),
    ],
    ids=["c_attn", "all", "fp32", "packed"],
)
def test_logits_loss_and_gradients_are_pefts(shape, dtype, targets, tolerance, tmp_path) -> None:
    model = make(shape, tmp_path / "base", dtype)
    lora = trained(model, targets)
    peer = peer_of(tmp_path / "base", lora)
    packed.prepack(model, backward=True)
    if shape is WIDE and packed.available():
        assert model.h[0].attn.c_attn.packed.forward is not None
    longest = EXAMPLES[1]
    theirs = peer(input_ids=longest.ids[None]).logits[0]
    (ours,) = logits_of(model, lora(), [longest.ids])
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    (plain,) = model.logits([longest.ids])
    assert (plain - ours).abs().max() > 1e-2
    loss = loss_of(model, lora(), pack([longest]))
    expected = cross_entropy(
        theirs[longest.prompt_length - 1 : -1], longest.ids[longest.prompt_length :]
    )
    torch.testing.assert_close(loss, expected, atol=tolerance, rtol=tolerance)
    loss.backward()
    expected.backward()
    pairs = zip(lora.a, lora.b, strict=True)
    ours = (pair for a, b in pairs for pair in zip(a.grad, b.grad, strict=True))
    for pair, theirs in zip(ours, peer_factors(peer, lora), strict=True):
        for mine, his in zip(pair, theirs, strict=True):
            scale = his.grad.abs().max()
            assert scale > 0 and (mine - his.grad.t()).abs().max() <= tolerance * scale
    assert all(p.grad is None for p in model.parameters())


def test_folded_is_as_beside_the_weights_and_as_peft_merges(tmp_path: Path) -> None:
    model = make(LITTLE, tmp_path / "base", "fp64")
    lora, prefix = trained(model, TARGETS), PrefixEncoder(LITTLE, 5, 8).double()()
    ids = [e.ids for e in EXAMPLES]
    beside = logits_of(model, lora(), ids, prefix)
    before = fingerprint(model)
    base = model.fingerprint
    packed.prepack(model)
    twin = fold(load_model(tmp_path / "base", "cpu", "fp64"), lora())
    for one, other in zip(twin.logits(ids, prefix), beside, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)
    merged = peer_of(tmp_path / "base", lora).merge_and_unload().state_dict()
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(parameter, merged[f"transformer.{name}"], atol=1e-12, rtol=0)
    assert fingerprint(model) == before and fingerprint(twin) != before
    assert twin.fingerprint == folded_fingerprint(base, lora()) != base
    other = trained(model, TARGETS[:1])
    assert folded_fingerprint(base, other()) != twin.fingerprint


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_computing_again_in_backward_changes_nothing(dropout: float, tmp_path: Path) -> None:
    model = make(LITTLE, tmp_path / "base", "fp64").train()
    lora, found = trained(model, TARGETS, dropout), []
    for model.grad_checkpoint in (False, True):
        torch.manual_seed(3)
        changes = lora()
        with changes.attached(model):  # in backward too
            loss = plain_loss(model, pack(EXAMPLES))
            found.append([loss, *torch.autograd.grad(loss, list(lora.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_dropout_acts_in_training_alone(tmp_path: Path) -> None:
    model = make(LITTLE, tmp_path / "base", "fp64")
    lora = trained(model, TARGETS, 0.5)
    kept = loss_of(model, lora.eval()())
    assert torch.equal(kept, loss_of(model, trained(model, TARGETS)()))
    model.train()
    assert torch.equal(kept, loss_of(model, lora.eval()()))
    losses = {loss_of(model, lora.train()()).item() for _ in range(4)}
    assert len(losses) == 4 and kept.item() not in losses
    assert torch.equal(kept, loss_of(model.eval(), lora()))


def test_the_model_is_at_first_what_it_was(tmp_path: Path) -> None:
    model = make(LITTLE, tmp_path / "base", "fp64")
    lora = Lora(LITTLE, RANK, ALPHA, TARGETS)
    ids = EXAMPLES[1].ids
    assert torch.equal(logits_of(model, lora(), [ids])[0], model.logits([ids])[0])
    for a in lora.a:
        bound = a.shape[1] ** -0.5
        assert 0.95 * bound < a.abs().max() <= bound
    again, other = Lora(LITTLE, RANK, ALPHA, TARGETS), Lora(LITTLE, RANK, ALPHA, TARGETS, seed=1)
    assert torch.equal(again.a[0], lora.a[0]) and not torch.equal(other.a[0], lora.a[0])
    with pytest.raises(ConfigError, match="lora-rank must lie in 1 to 24"):
        Lora(LITTLE, 25, ALPHA, TARGETS)
