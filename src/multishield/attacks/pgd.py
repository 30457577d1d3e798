"""Projected gradient descent (Madry et al. 2018), and FGSM (Goodfellow et al. 2015), which is one step of it."""

from torch import Tensor, nn

from multishield.attacks.loop.loop import State, ascend
from multishield.attacks.loop.result import AttackedImages, Success
from multishield.attacks.losses import ce
from multishield.attacks.threat_model import Ball, fooled
from multishield.models.classifier import device_of


class SignedSteps:
    """Steps of one size in the steepest direction, projected; from a random point of the ball or the clean image."""

    needs_gradient = True

    def __init__(self, ball: Ball, steps: int, size: float, random: bool):
        self.ball, self.steps, self.size, self.random = ball, steps, size, random

    def start(self, clean: Tensor, streams: Tensor) -> State:
        return {"x": self.ball.random(clean, streams) if self.random else clean.clone()}

    def move(self, state: State, losses: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
        return self.ball.project(state["x"] + self.size * self.ball.ascent(sum(gradients)), state["clean"])


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "Linf",
    success: Success = fooled,
    steps: int = 20,
    step_size: float = 2 / 255,
    **loop,
) -> AttackedImages:
    """Gradient ascent on the cross-entropy from a random point of the ball.

    Args:
        model: pixels to outputs (B,C).
        images, labels: (N,3,H,W) in [0,1]; (N,).
        eps, norm: radius and norm ("Linf" or "L2") of the ball.
        success: the rule that decides on the model's outputs.
        steps, step_size: number and size of the steps.
        loop: `seed` and `ids`, which name each image's random streams, and further arguments of `ascend`.
    """
    rule = SignedSteps(Ball(eps, norm), steps, step_size, random=True)
    return _cross_entropy(model, images, labels, rule, "pgd", success, loop)


def fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "Linf",
    success: Success = fooled,
    **loop,
) -> AttackedImages:
    """One step of size eps from the clean image. Args: see `pgd`; nothing is random, `seed` is not used."""
    rule = SignedSteps(Ball(eps, norm), 1, eps, random=False)
    return _cross_entropy(model, images, labels, rule, "fgsm", success, loop)


def _cross_entropy(model, images, labels, rule: SignedSteps, tag: str, success: Success, loop: dict) -> AttackedImages:
    return ascend(
        model,
        images,
        labels,
        tag=tag,
        success=success,
        objective=lambda out, y, target, variant: (ce(out, y),),
        rule=rule,
        where=device_of(model),
        **loop,
    )
