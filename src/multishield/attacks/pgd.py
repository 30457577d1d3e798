"""Projected gradient descent (Madry et al. 2018)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multishield.attacks.base import AttackResult, Success, fooled, project, random_start


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    seed: int,
    ids: Tensor,
    success: Success = fooled,
    steps: int = 20,
    step_size: float = 2 / 255,
) -> AttackResult:
    """Signed gradient ascent on the cross-entropy from a random point; an image that is broken leaves the batch.

    Args:
        model: pixels to outputs (B,C).
        images, labels: (B,3,H,W) in [0,1]; (B,).
        eps: L-inf radius.
        ids: (B,), name each image's random stream.
        success: the rule that decides on the model's outputs.
        steps, step_size: number and size of the steps.
    """
    where = next(iter(model.parameters())).device
    images, labels = images.to(where), labels.to(where)
    best, done = images.clone(), success(model(images).detach(), labels)
    passes = torch.ones(2, len(images), dtype=torch.long)
    passes[1] = 0
    x_adv = random_start(images, eps, ids, seed, "pgd")
    for step in range(steps + 1):
        live = (~done).nonzero().squeeze(1)
        if not len(live):
            break
        x = x_adv[live].requires_grad_(step < steps)
        with torch.set_grad_enabled(step < steps):
            logits = model(x)
        broken = success(logits.detach(), labels[live])
        passes[0, live.cpu()] += 1
        best[live[broken]], done[live[broken]] = x[broken].detach(), True
        if step < steps:
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels[live], reduction="sum"), x)
            passes[1, live.cpu()] += 1
            x_adv[live] = project(x.detach() + step_size * gradient.sign(), images[live], eps)
    return AttackResult(best.cpu(), done.cpu(), passes[0], passes[1])
