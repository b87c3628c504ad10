"""The cross-entropy that overwrites its logits, against torch's."""

import pytest
import torch
from torch.nn import functional as F

from mingpt_prefix.loss import IGNORE_INDEX, summed_cross_entropy


def draw(dtype: torch.dtype, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(7, 50, generator=generator, dtype=torch.float64)
    targets = torch.randint(50, (7,), generator=generator)
    targets[[2, 5]] = IGNORE_INDEX
    return logits.to(dtype).requires_grad_(), targets


# At 200 the probability of most targets is 0 in float32, and the loss is not infinite for that.
@pytest.mark.parametrize("scale", [1.0, 200.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_loss_and_gradient_are_torchs(dtype, scale) -> None:
    logits, targets = draw(dtype, scale)
    expected = F.cross_entropy(logits.float() if dtype != torch.float64 else logits, targets,
                               reduction="sum")  # fmt: skip
    (wanted,) = torch.autograd.grad(0.3 * expected, logits)
    loss = 0.3 * summed_cross_entropy(logits * 1, targets)
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    assert torch.equal(torch.autograd.grad(loss, logits)[0], found)
    assert torch.isfinite(loss) and loss.dtype == expected.dtype and found.dtype == dtype
    torch.testing.assert_close(loss, 0.3 * expected)
    torch.testing.assert_close(found, wanted)


def test_without_a_gradient_the_logits_stay() -> None:
    logits, targets = draw(torch.float32, 1.0)
    given = logits.detach().clone()
    summed_cross_entropy(given, targets)
    assert torch.equal(given, logits)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_gives_a_loss_that_is_none(value) -> None:
    logits, targets = draw(torch.float32, 1.0)
    with torch.no_grad():
        logits[0, 3] = value
    assert not torch.isfinite(summed_cross_entropy(logits * 1, targets))
