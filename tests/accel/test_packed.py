"""Packed weights: the same products and gradients, never those of a weight that has changed."""

import copy

import pytest
import torch

from mingpt_prefix.accel import prepacked_linear as packed
from mingpt_prefix.batch import Encoded, pack
from mingpt_prefix.config import ModelConfig
from mingpt_prefix.model import GPT2
from mingpt_prefix.prefix import PrefixEncoder

SHAPE = ModelConfig(2, 3, 48, vocab_size=97, n_positions=40, eos_token_id=96, tokenizer=None)

pytestmark = pytest.mark.skipif(not packed.available(), reason="this torch has no such operators")


@pytest.fixture(autouse=True)
def any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LEAST_WIDTH", 1)


def make() -> GPT2:
    model = GPT2(SHAPE).initialize(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(1)
            )
    return model.requires_grad_(False).eval()


def copy_of(model: GPT2) -> torch.Tensor | None:
    """The packed copy of the head's weight."""
    head = model.tied_head
    return head.packed.forward if isinstance(head, packed.PrepackedHead) else None


def generating(model: GPT2, ids: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return model.logits(ids)


def losses_and_gradients(model: GPT2) -> tuple[torch.Tensor, list[torch.Tensor]]:
    encoder = PrefixEncoder(SHAPE, 4, 8)
    batch = pack([Encoded(torch.arange(n) % 97, n // 2) for n in (9, 30, 2)], 4)
    hidden = model(batch.tokens, batch.positions, batch.layout, encoder())
    logits = model.head(hidden[batch.target_index])
    loss = torch.nn.functional.cross_entropy(logits, batch.target_tokens)
    return loss.detach(), list(torch.autograd.grad(loss, encoder.parameters()))


def test_the_same_loss_and_gradients() -> None:
    model = make()
    loss, gradients = losses_and_gradients(model)
    packed.prepack(model, backward=True)
    assert copy_of(model) is not None and model.h[1].mlp.c_fc.packed.forward is not None
    again, others = losses_and_gradients(model)
    torch.testing.assert_close(again, loss, atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_without_backward_training_takes_the_plain_product() -> None:
    model = make()
    loss, gradients = losses_and_gradients(model)
    packed.prepack(model)
    generating(model, [torch.arange(5)])
    assert copy_of(model) is not None
    again, others = losses_and_gradients(model)
    # The layers before the first prefix row need no gradient, and are packed.
    torch.testing.assert_close(again, loss, atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_a_weight_that_has_changed_is_not_taken_from_the_copy() -> None:
    ids = [torch.arange(12)]
    for change in (
        lambda model: model.h[0].mlp.c_fc.weight.mul_(2),
        lambda model: model.wte.weight.add_(0.1),
        lambda model: model.load_state_dict(GPT2(SHAPE).initialize(5).state_dict()),
        lambda model: model.double(),
    ):
        model = make()
        packed.prepack(model)
        before = generating(model, ids)[0]
        with torch.no_grad():
            change(model)
            fresh = GPT2(SHAPE).to(model.wte.weight.dtype)
            fresh.load_state_dict(model.state_dict())
            after, expected = model.logits(ids)[0], fresh.eval().logits(ids)[0]
        assert (after - before).abs().max() > 1e-3 or after.dtype == torch.float64
        torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(generating(model, ids)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not packed.available(torch.bfloat16), reason="not for bfloat16")
def test_writing_in_bfloat16_is_packed_and_training_is_not() -> None:
    model = make().bfloat16()
    packed.prepack(model, backward=True)
    ids = [torch.arange(12), torch.arange(3)]
    with torch.no_grad():
        expected = model.logits(ids)
    assert copy_of(model) is None
    for found, wanted in zip(generating(model, ids), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=0.05, rtol=0.02)
    assert copy_of(model) is not None


def test_only_frozen_models_of_these_dtypes_are_packed() -> None:
    ids = [torch.arange(5)]
    for model in (make().requires_grad_(True), make().double(), make().half()):
        packed.prepack(model, backward=True)
        generating(model, ids)
        assert copy_of(model) is None
    model = make()
    packed.prepack(model)
    with torch.no_grad():
        model.logits(ids)
    assert copy_of(model) is None  # only generating copies
    generating(model, ids)
    held = copy_of(model)
    packed.prepack(model)
    generating(model, ids)
    assert copy_of(model) is held is not None  # not again
    packed.prepack(model, backward=True)
    assert copy_of(model) is not held
    model.requires_grad_(True)
    (logits,) = model.logits([torch.arange(5)])
    logits.sum().backward()
    assert model.h[0].mlp.c_fc.weight.grad is not None and model.wte.weight.grad is not None
    twin = copy.deepcopy(model)
    assert copy_of(twin) is None and twin.h[0].mlp.c_fc.packed.forward is None


@pytest.mark.parametrize("limit", [{"MOST_BYTES": 1000}, {"LEAST_WIDTH": 49}], ids=str)
def test_too_large_or_narrow_a_model_is_left_alone(limit: dict, monkeypatch) -> None:
    for name, value in limit.items():
        monkeypatch.setattr(packed, name, value)
    model = make()
    packed.prepack(model)
    generating(model, [torch.arange(5)])
    assert copy_of(model) is None
