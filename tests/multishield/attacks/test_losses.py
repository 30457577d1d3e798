"""Losses in closed form."""

import pytest
import torch

from multishield.attacks import losses
from multishield.attacks.paper import ce_loss, dlr_loss


def test_losses_closed_forms():
    z, y, t = torch.tensor([[1.0, 4.0, 2.0, 0.0]]), torch.tensor([1]), torch.tensor([2])
    assert losses.ce(z, y).item() == pytest.approx(-z.log_softmax(1)[0, 1].item())
    assert losses.margin(z, y).item() == -2
    assert losses.dlr(z, y).item() == pytest.approx(-2 / 3)  # (2 - 4) / (4 - 1)
    assert losses.dlr_targeted(z, y, t).item() == pytest.approx(-2 / 3.5)  # (2 - 4) / (4 - (1 + 0) / 2)


def test_paper_losses_closed_forms():
    outputs, label = torch.tensor([[2.0, 1.0, 0.5, 3.0]], requires_grad=True), torch.tensor([0])  # reject is the last
    assert torch.allclose(ce_loss(outputs, label), 2 * torch.logsumexp(outputs, 1) - 2.0 - 3.0)
    # y and reject are the two largest: the two DLR terms cancel exactly, and so do their gradients.
    value = dlr_loss(outputs, label)
    (gradient,) = torch.autograd.grad(value.sum(), outputs)
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max() < 1e-6
