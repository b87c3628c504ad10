"""Muon against torch's own, which takes one matrix at a time."""

import pytest
import torch
from torch import nn

from mingpt_prefix.optim import Muon, orthogonalized

SHAPES = [(20, 8), (8, 20), (20, 8), (6, 6), (8, 20)]


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def move(optimizer: torch.optim.Optimizer, matrices: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        optimizer.step()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it since 2.9")
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_it_moves_each_matrix_as_torch_does() -> None:
    ours, theirs = parameters(), parameters()
    settings = dict(lr=0.1, weight_decay=0.2)
    optimizer = Muon(ours, dtype=torch.bfloat16, **settings)
    other = torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **settings)
    for each, matrices in ((optimizer, ours), (other, theirs)):
        move(each, matrices, range(4))
    # In 16 bit a batch of products may be added up in another order than one of them.
    for mine, its, start in zip(ours, theirs, parameters(), strict=True):
        assert (mine - its).abs().max() < 0.02 * (its - start).abs().max()


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_singular_values_come_out_near_one(shape) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    out = orthogonalized(matrices)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    kept = u.mT @ out @ v.mT  # (3, 8, 8), diagonal
    values = kept.diagonal(dim1=1, dim2=2)
    assert 0.6 < values.min() and values.max() < 1.3
    assert (kept - torch.diag_embed(values)).abs().max() < 1e-4


def test_a_matrix_without_a_gradient_stays() -> None:
    still, moved = parameters()[:2]
    before = still.detach().clone()
    moved.grad = torch.ones_like(moved)
    Muon([still, moved], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(still, before)


def test_it_goes_on_from_its_state() -> None:
    whole, halves = parameters(), parameters()
    move(Muon(whole, lr=0.1), whole, range(4))
    first = Muon(halves, lr=0.1)
    move(first, halves, range(2))
    second = Muon(halves, lr=0.1)
    second.load_state_dict(first.state_dict())
    move(second, halves, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))


def test_what_is_no_matrix_is_refused() -> None:
    vector, optimizer = nn.Parameter(torch.zeros(3)), Muon(parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        Muon([vector], lr=0.1)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        optimizer.add_param_group({"params": [vector]})


def test_torchs_schedules_set_its_rate() -> None:
    matrices = parameters()
    optimizer = Muon(matrices, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step == 0))
    move(optimizer, matrices, range(1))
    schedule.step()
    before = [matrix.detach().clone() for matrix in matrices]
    move(optimizer, matrices, range(1, 2))
    assert all(torch.equal(a, b) for a, b in zip(matrices, before, strict=True))
