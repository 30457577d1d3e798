"""The images of adversarial training: random flips and shifts, a growing radius, signed gradient steps in the ball."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from multishield.attacks.pgd import pgd
from multishield.attacks.threat_model import Ball
from multishield.images import Images


def perturb(
    loss_of: Callable, x: Tensor, noise: float, generator: torch.Generator, eps: float, step: float, steps: int
) -> Tensor:
    """Signed gradient ascent on `loss_of(x_adv)` in the Linf ball around x (B,3,H,W), from x with uniform noise."""
    ball, uniform = Ball(eps), 2 * torch.rand(x.shape, generator=generator).to(x.device) - 1
    x_adv = ball.project(x + noise * uniform, x)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(x_adv), x_adv)
        x_adv = ball.project(x_adv.detach() + step * gradient.sign(), x)
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
    """The share of the radius, in [0,1], after so many epochs. With full eps from the start FGSM can stay at chance."""
    return min(1.0, epoch / warmup_epochs) ** 2 if warmup_epochs else 1.0


def pgd_accuracy(model: Callable, data: Images, params, seed: int) -> float:
    """The share of images that stay right under PGD with steps of eps/4; `params` has eps and validation_steps."""
    rule = {"ball": Ball(params.eps), "steps": params.validation_steps, "step_size": params.eps / 4}
    result = pgd(model, data.pixels, data.labels, seed=seed, ids=data.ids, **rule)
    return 1 - result.success.float().mean().item()
