"""Projected gradient descent (Madry et al. 2018), and FGSM (Goodfellow et al. 2015), which is one step of it."""

from torch import Tensor, nn

from multishield.attacks.loop import Rule, State, ascend
from multishield.attacks.losses import ce
from multishield.attacks.threat_model import Ball
from multishield.images import AttackedImages


class SignedSteps(Rule):
    """Steps of one size in the steepest direction, projected; from a random point of the ball or the clean image."""

    def __init__(self, ball: Ball, steps: int, size: float, random: bool):
        super().__init__(ball, steps)
        self.size, self.random = size, random

    def first(self, clean: Tensor, streams: Tensor) -> Tensor:
        return super().first(clean, streams) if self.random else clean.clone()

    def move(self, state: State, losses: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
        return self.inside(state["x"] + self.size * self.ball.ascent(sum(gradients)), state)


def pgd(
    model: nn.Module, images: Tensor, labels: Tensor, *, ball: Ball, steps=20, step_size=2 / 255, random=True, **loop
) -> AttackedImages:
    """Gradient ascent on the cross-entropy: `steps` of `step_size`, from a random point unless `random` is False.

    The model takes pixels to outputs (B,C). For the other arguments see `multishield.attacks`.
    """
    options = {"tag": "pgd", "rule": SignedSteps(ball, steps, step_size, random)}
    return ascend(model, images, labels, objective=lambda out, y, *_: (ce(out, y),), **options | loop)


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, *, ball: Ball, **options) -> AttackedImages:
    """One step of size eps from the clean image; no random number is drawn. For the arguments see `pgd`."""
    return pgd(model, images, labels, ball=ball, steps=1, step_size=ball.eps, random=False, tag="fgsm", **options)
