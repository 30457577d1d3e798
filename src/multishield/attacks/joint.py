"""The adaptive attack that is believed: both models are driven to the same wrong class.

Evading the shield takes agreement: for a target t != y, z_t must be the largest logit and c_t within tau of the largest
cosine. Each model has its own targeted margin and its own gradient, which do not add up: a sum lets one model drown the
other. Every step goes to the model that is further from where it should be. Success is the shield's own decision,
never the loss.
"""

import torch
from torch import Tensor, nn

from multishield.attacks.loop.loop import State, ascend
from multishield.attacks.loop.result import AttackedImages, per_image
from multishield.attacks.losses import at, rival
from multishield.attacks.threat_model import Ball, evades
from multishield.models.classifier import device_of


def targets_in_turn(scores: tuple[Tensor, Tensor], labels: Tensor, count: int) -> Tensor:
    """The wrong classes to try: the classifier's likeliest, CLIP's likeliest, the classifier's second, ... (B,count).

    Which of the two models is harder to convince is not known beforehand, so each names its own candidates. A sum of
    their scores would need a scale between logits and cosines, and lets one of them choose for both. At most K-1.
    """
    wrong = (s.scatter(1, labels.view(-1, 1), -torch.inf) for s in scores)
    z, c = (s.argsort(dim=1, descending=True, stable=True).argsort(1) for s in wrong)  # ranks; the label is last
    turn = torch.minimum(2 * z, 2 * c + 1)
    return turn.argsort(1)[:, : min(count, turn.shape[1] - 1)]


def target_margins(scores: tuple[Tensor, Tensor], target: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """How far the target leads: z_t - max_{j != t} z_j, and c_t - max_{j != t} c_j + tau, each (B,).

    Both positive: the shield accepts the target.
    """
    z, c = scores
    return at(z, target) - rival(z, target), at(c, target) - rival(c, target) + tolerance


class StepTowardsWeakerModel:
    """Signed steps of an accumulated direction, from eps/4 down to eps/40, each for the model that needs it more.

    That is the model further from its boundary, as far as its gradient tells: m / |grad m|, in the dual norm, is the
    distance that a step in the steepest direction would have to go. The unit is pixels for both models, so that
    cosines and logits can be compared without a scale.
    """

    needs_gradient = True

    def __init__(self, ball: Ball, steps: int, decay: float = 0.75):
        self.ball, self.steps, self.decay = ball, steps, decay

    def start(self, clean: Tensor, streams: Tensor) -> State:
        x = self.ball.random(clean, streams)
        return {"x": x, "velocity": torch.zeros_like(x)}

    def move(self, state: State, margins: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
        slopes = [self.ball.slope(g) for g in gradients]
        z, c = (m / slope for m, slope in zip(margins, slopes, strict=True))
        units = [g / per_image(slope) for g, slope in zip(gradients, slopes, strict=True)]
        state["velocity"] = self.decay * state["velocity"] + torch.where(per_image(z <= c), *units)
        size = self.ball.eps / 4 * (1 - 0.9 * state["step"] / self.steps)
        return self.ball.project(state["x"] + per_image(size) * self.ball.ascent(state["velocity"]), state["clean"])


def joint(
    shield: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "Linf",
    targets: int = 3,
    steps: int = 60,
    restarts: int = 1,
    **loop,
) -> AttackedImages:
    """Drive both models to one target after the other, until the shield accepts a wrong class, whichever it is.

    Args:
        shield: a `MultiShield`, or anything with its `scores`, `outputs`, `tolerance` and parameters.
        eps, norm: see `Ball`.
        targets: wrong classes to try, in the order of `targets_in_turn` (at most K-1).
        steps: steps per target and restart.
        restarts: random starts per target.
        images, labels: see `ascend`. loop: its other arguments, `seed` and `ids` among them.
    """
    return ascend(
        shield.scores,
        images,
        labels,
        tag="joint",
        success=evades(shield),
        objective=lambda scores, y, target, variant: target_margins(scores, target, shield.tolerance),
        rule=StepTowardsWeakerModel(Ball(eps, norm), steps),
        where=device_of(shield),
        plan=lambda scores, y: targets_in_turn(scores, y, targets).repeat(1, restarts),
        **loop,
    )


def evasion_margin(scores: tuple[Tensor, Tensor], labels: Tensor, tolerance: float) -> Tensor:
    """A loss without gradients in mind, for a black-box attack that sees both scores: how near evasion is, (B,).

    The best wrong class's smaller margin, logits and cosines each in units of their spread over the classes: positive
    exactly where a wrong class is accepted.
    """
    leads = []
    for s, slack in zip(scores, (0.0, tolerance), strict=True):
        top = s.topk(2, dim=1).values
        rivals = torch.where(s == top[:, :1], top[:, 1:], top[:, :1])
        leads.append((s - rivals + slack) / s.std(1, keepdim=True).clamp_min(1e-12))
    return rival(torch.minimum(*leads), labels)
