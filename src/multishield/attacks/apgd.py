"""Auto-PGD (Croce & Hein 2020, algorithm 1) for the L-inf norm, on any loss and any rule for success.

Every image has its own step size, best point and random start; nothing depends on the rest of the batch. An image that
is broken leaves the batch: the verdict is the same as after all steps, and the cost is less.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from multishield.attacks.base import AttackResult, Success, project, random_start


def checkpoints(steps: int) -> list[int]:
    """The steps at which progress is judged: p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)."""
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    return sorted({math.ceil(round(q * steps, 6)) for q in p[1:] if q < 1})  # rounded: 0.57 * 100 is 57.00...01


def apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    seed: int,
    ids: Tensor,
    success: Success,
    loss: Callable[[Tensor, Tensor], Tensor],
    tag: str,
    steps: int = 100,
    rho: float = 0.75,
    momentum: float = 0.75,
) -> AttackResult:
    """Maximise a loss in the ball around each image.

    Args:
        model: pixels to outputs (B,C).
        images, labels: (B,3,H,W) in [0,1]; (B,).
        eps: L-inf radius.
        seed, ids, tag: name each image's random start.
        success: the rule that decides on the model's outputs.
        loss: outputs and labels to values (B,).
        steps: gradient steps.
        rho: the fraction of steps that must raise the loss between two checkpoints; else the step is halved.
        momentum: alpha of the paper.
    """
    where = next(iter(model.parameters())).device
    images, labels = images.to(where), labels.to(where)
    result, done = images.clone(), success(model(images).detach(), labels)
    passes = torch.zeros(2, len(images), dtype=torch.long)
    passes[0] = 1
    live = (~done).nonzero().squeeze(1)
    state = _start(images[live], random_start(images[live], eps, ids[live.cpu()], seed, tag), eps)
    judged = checkpoints(steps)
    for step in range(steps + 1):
        if not len(live):
            break
        x = state["x"].requires_grad_(step < steps)
        with torch.set_grad_enabled(step < steps):
            outputs = model(x)
            value = loss(outputs, labels[live])
        passes[0, live.cpu()] += 1
        broken = success(outputs.detach(), labels[live])
        result[live[broken]], done[live[broken]] = x.detach()[broken], True
        if step == steps:
            break
        (gradient,) = torch.autograd.grad(value.sum(), x)
        passes[1, live.cpu()] += 1
        _record(state, x.detach(), value.detach(), gradient)
        if step in judged:
            _judge(state, rho * (step - ([0, *judged])[judged.index(step)]))
        state = {name: tensor[~broken] for name, tensor in state.items()}
        live = live[~broken]
        _step(state, images[live], eps, momentum if step else 1.0)
    return AttackResult(result.cpu(), done.cpu(), passes[0], passes[1])


def _start(images: Tensor, x: Tensor, eps: float) -> dict[str, Tensor]:
    n, like = len(images), {"device": images.device}
    return {
        "x": x,
        "previous": x.clone(),
        "gradient": torch.zeros_like(x),
        "best_x": x.clone(),
        "best_gradient": torch.zeros_like(x),
        "best": torch.full((n,), -torch.inf, **like),
        "last": torch.full((n,), torch.inf, **like),
        "rises": torch.zeros(n, **like),
        "size": torch.full((n,), 2 * eps, **like),
        "halved": torch.ones(n, dtype=torch.bool, **like),
        "best_at_judgement": torch.full((n,), -torch.inf, **like),
    }


def _record(state: dict[str, Tensor], x: Tensor, value: Tensor, gradient: Tensor) -> None:
    """Take in the loss and the gradient at x."""
    state["x"], state["gradient"] = x, gradient
    state["rises"] = state["rises"] + (value > state["last"])
    state["last"] = value
    better = value > state["best"]
    mask = better.view(-1, 1, 1, 1)
    state["best"] = torch.where(better, value, state["best"])
    state["best_x"] = torch.where(mask, x, state["best_x"])
    state["best_gradient"] = torch.where(mask, gradient, state["best_gradient"])


def _judge(state: dict[str, Tensor], enough: float) -> None:
    """At a checkpoint: halve the step and go back to the best point where there is too little progress."""
    stuck = ~state["halved"] & (state["best"] <= state["best_at_judgement"])
    halve = (state["rises"] < enough) | stuck
    mask = halve.view(-1, 1, 1, 1)
    state["size"] = torch.where(halve, state["size"] / 2, state["size"])
    state["x"] = torch.where(mask, state["best_x"], state["x"])
    state["gradient"] = torch.where(mask, state["best_gradient"], state["gradient"])
    state["halved"], state["best_at_judgement"] = halve, state["best"].clone()
    state["rises"] = torch.zeros_like(state["rises"])


def _step(state: dict[str, Tensor], images: Tensor, eps: float, momentum: float) -> None:
    """A signed gradient step, mixed with the step before, projected."""
    x, size = state["x"], state["size"].view(-1, 1, 1, 1)
    z = project(x + size * state["gradient"].sign(), images, eps)
    moved = project(x + momentum * (z - x) + (1 - momentum) * (x - state["previous"]), images, eps)
    state["previous"], state["x"] = x, moved
