"""What adversarial training does to its images: random flips and shifts, a growing radius, signed steps in the ball."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from multishield.attacks.threat_model import Ball


def perturb(
    model: Callable[[Tensor], Tensor], x: Tensor, loss_of: Callable, x_adv: Tensor, eps: float, step: float, steps: int
) -> Tensor:
    """Signed gradient ascent on `loss_of(model(x_adv))` from `x_adv`, kept in the Linf ball around x (B,3,H,W)."""
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(model(x_adv)), x_adv)
        x_adv = Ball(eps).project(x_adv.detach() + step * gradient.sign(), x)
    return x_adv.detach()


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random horizontal flips, and shifts by up to an eighth of the side with zero padding, drawn for each image."""
    flip = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)
    pad = x.shape[2] // 8
    padded = F.pad(x, (pad,) * 4)
    shifts = torch.randint(0, 2 * pad + 1, (2, len(x)), generator=generator)
    rows = shifts[0].view(-1, 1) + torch.arange(x.shape[2])
    columns = shifts[1].view(-1, 1) + torch.arange(x.shape[3])
    image = torch.arange(len(x)).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def grown(epoch: float, warmup_epochs: int) -> float:
    """The part of the radius that is used after so many epochs.

    At full eps from the first step FGSM training can stay at chance. The square keeps eps small until the network has
    learned something.
    """
    return min(1.0, epoch / warmup_epochs) ** 2 if warmup_epochs else 1.0
