"""The gradients of the whole model against finite differences, in float64 (torch's gradcheck).

Ragged sequences packed together, one of a single token, with two prefixes of different lengths, one
sequence that sees none, and one that sees its prefix from its third token on.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import functional_call

from mingpt_prefix.batch import Encoded, PackedBatch, PrefixKV, make_layout, make_positions, pack
from mingpt_prefix.config import ModelConfig
from mingpt_prefix.model import GPT2
from mingpt_prefix.prefix import PrefixEncoder
from mingpt_prefix.step import SummedLoss

SHAPE = ModelConfig(2, 2, 4, vocab_size=7, n_positions=12, eos_token_id=6, tokenizer=None)
LENGTHS, PREFIX_LENGTHS = [3, 1, 5, 4], [2, 3]
PREFIX_IDS, PREFIX_FROM = [1, 0, -1, 0], [0, 0, 0, 2]


@pytest.fixture
def model() -> GPT2:
    model = GPT2(SHAPE).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.5, generator=generator)
    return model


@pytest.fixture
def batch() -> PackedBatch:
    layout = make_layout(LENGTHS, PREFIX_IDS, PREFIX_FROM)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(SHAPE.vocab_size, (sum(LENGTHS),), generator=generator)
    index = torch.tensor([0, 1, 3, 5, 6, 9, 11])
    return PackedBatch(tokens, make_positions(layout), layout, index, tokens[index - 1])


def rows() -> list[Tensor]:
    """Each prefix's rows (L, 2, P, H, D)."""
    generator = torch.Generator().manual_seed(2)
    config = SHAPE
    shapes = [(config.n_layer, 2, n, config.n_head, config.head_dim) for n in PREFIX_LENGTHS]
    made = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    return [tensor.requires_grad_() for tensor in made]


def loss_of(model: GPT2, batch: PackedBatch) -> tuple[list[str], Callable[..., Tensor]]:
    """The names of the model's parameters, and the loss as a function of those and the rows."""
    loss = SummedLoss(model, autocasts=False)
    names = [name for name, _ in loss.named_parameters()]

    def call(*tensors: Tensor) -> Tensor:
        weights = dict(zip(names, tensors[: len(names)], strict=True))
        prefix = PrefixKV.pack(tensors[len(names) :])
        return functional_call(loss, weights, (batch, prefix))

    return names, call


# Along a random direction alone where blocks are computed again, which takes long.
@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
def test_every_weight_and_every_row(model: GPT2, batch, again: bool) -> None:
    model.grad_checkpoint = again
    names, call = loss_of(model, batch)
    weights = [p.detach().requires_grad_() for p in model.parameters()]
    assert len(names) == len(weights) == 2 + 2 * 12 + 2
    assert gradcheck(call, (*weights, *rows()), fast_mode=again, check_undefined_grad=False)
    gradients = torch.autograd.grad(call(*weights, *(prefix := rows())), (*weights, *prefix))
    assert all(gradient.abs().max() > 1e-6 for gradient in gradients)


def test_the_last_block_skips_tokens_that_predict_nothing(model: GPT2, batch) -> None:
    seen: list[int] = []
    for block in model.h:
        block.mlp.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    inputs = (batch.tokens, batch.positions, batch.layout, PrefixKV.pack(rows()))
    expected = model(*inputs)[batch.target_index]
    torch.testing.assert_close(model(*inputs, batch.target_index), expected)
    assert seen == [len(batch.tokens)] * 3 + [len(batch.target_index)]


def test_through_the_prefix_encoder(model: GPT2) -> None:
    model.requires_grad_(False)
    encoder = PrefixEncoder(SHAPE, 2, mid_dim=3).double()
    names = [name for name, _ in encoder.named_parameters()]
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(SHAPE.vocab_size, (n,), generator=generator) for n in (5, 3)]
    loss, packed = SummedLoss(model, autocasts=False), pack([Encoded(i, 1) for i in ids], 2)

    def call(*tensors: Tensor) -> Tensor:
        return loss(packed, functional_call(encoder, dict(zip(names, tensors, strict=True)), ()))

    weights = [p.detach().requires_grad_() for p in encoder.parameters()]
    assert len(weights) > 1 and gradcheck(call, weights, check_undefined_grad=False)
