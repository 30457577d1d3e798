"""The attack that is believed: every condition of a defence is driven to the same wrong class.

A defence accepts a class where all of its margins are >= 0 (see `defences`). Each margin has its own gradient, and they
do not add up: a sum lets one model drown the other. Every step goes to the margin that is further from where it should
be. Success is the defence's own decision, never the loss.

No image can be broken behind a defence that cannot be broken on each of its parts alone. So the attack begins where
attacks on the parts have ended, and the budget goes to the images that those have broken.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from multishield.attacks.loop import State, ascend
from multishield.attacks.losses import at, evasion_margin
from multishield.attacks.plan import NO_TRY, Plan
from multishield.attacks.threat_model import Ball, evades, per_image
from multishield.forward import device_of, forward
from multishield.images import AttackedImages

# For images that every part has lost and the defence has not: steps of the long tries from each start, in units of the
# others', and rounds of tries from more random points.
LONG, ROUNDS = 5, 3


def targets_in_turn(margins: Tensor, labels: Tensor, count: int) -> Tensor:
    """The wrong classes to try: the first margin's likeliest, the second's, ..., the first one's second, ... (B,count).

    Which part is harder to convince is not known beforehand, so each names its own candidates. A sum would need a scale
    between them, and lets one choose for all. Margins (B,M,K) of clean images; at most K-1 classes.
    """
    parts = margins.shape[1]
    wrong = margins.scatter(2, labels.view(-1, 1, 1).expand(-1, parts, 1), -torch.inf)
    ranks = wrong.argsort(dim=2, descending=True, stable=True).argsort(2)  # the label is last
    turn = (parts * ranks + torch.arange(parts, device=ranks.device)[:, None]).amin(1)
    return turn.argsort(1)[:, : min(count, margins.shape[2] - 1)]


class StepTowardsWeakestMargin:
    """Signed steps of an accumulated direction, from eps/4 down to eps/40, each for the margin that needs it most.

    That is the one furthest from its boundary, as far as its gradient tells: m / |grad m|, in the dual norm, is the
    distance that a step in the steepest direction would have to go. The unit is pixels for every margin, so that
    cosines and logits can be compared without a scale.
    """

    needs_gradient = True

    def __init__(self, ball: Ball, steps: int, decay: float = 0.75):
        self.ball, self.steps, self.decay = ball, steps, decay

    def first(self, clean: Tensor, streams: Tensor) -> Tensor:
        return self.ball.random(clean, streams)

    def begin(self, x: Tensor, clean: Tensor, streams: Tensor) -> State:
        return {"velocity": torch.zeros_like(x)}

    def move(self, state: State, margins: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
        slopes = [self.ball.slope(g) for g in gradients]
        distances = torch.stack([m / slope for m, slope in zip(margins, slopes, strict=True)])
        units = torch.stack([g / per_image(slope) for g, slope in zip(gradients, slopes, strict=True)])
        weakest = units[distances.argmin(0), torch.arange(len(units[0]), device=distances.device)]
        state["velocity"] = self.decay * state["velocity"] + weakest
        size = self.ball.eps / 4 * (1 - 0.9 * state["step"] / state["steps"])
        return self.ball.project(state["x"] + per_image(size) * self.ball.ascent(state["velocity"]), state["clean"])


def joint(
    defence: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "Linf",
    starts: Sequence[AttackedImages] = (),
    targets: int = 3,
    steps: int = 60,
    restarts: int = 1,
    long: int = LONG,
    rounds: int = ROUNDS,
    nearest: bool = False,
    **loop,
) -> AttackedImages:
    """Drive all margins to one target after the other, until the defence accepts a wrong class, whichever it is.

    Args:
        defence: a `MultiShield`, or another one with `scores`, `margins` and `outputs` (see `defences`).
        eps, norm: see `Ball`.
        starts: what attacks on the parts alone have made of the same images. An image that one of them has not broken
            gets one random try; an image that all have broken gets all tries, at the end long ones and more random
            ones (`LONG`, `ROUNDS`).
        targets: wrong classes to try from random points, in the order of `targets_in_turn` (at most K-1).
        steps: steps per try.
        restarts: random starts per target.
        long, rounds: see `LONG`.
        nearest: return an image that resisted where it was nearest to evasion, and not as it was: what the strictest of
            several thresholds has resisted may be accepted by a looser one.
        images, labels: see `ascend`. loop: its other arguments, `seed` and `ids` among them.
    """
    where, ball = device_of(defence), Ball(eps, norm)
    begun = [ball.project(start.images, images) for start in starts]  # they may be of a larger radius
    named = [_targets_at(defence, x, labels, where) for x in begun]
    lost = torch.stack([start.success for start in starts], 1) if starts else torch.ones(len(images), 1).bool()

    def plan(scores, y: Tensor, index: Tensor) -> Plan:
        """Columns: two targets from each start, the random tries, the long ones, more random ones."""
        ordered = targets_in_turn(defence.margins(scores), y, targets).cpu()
        drawn, hopeful = ordered.repeat(1, restarts), lost[index].all(1, keepdim=True)
        columns = [(t[index].where(lost[index, k, None], NO_TRY), k, 1) for k, t in enumerate(named)]
        columns += [(drawn[:, :1], -1, 1)]
        alone = sum(t.shape[1] for t, _, _ in columns)
        columns += [(drawn[:, 1:].where(hopeful, NO_TRY), -1, 1)]
        if long > 1:  # as long as the others they would be the same again
            columns += [(t[index, :1].where(hopeful, NO_TRY), k, long) for k, t in enumerate(named)]
        columns += [(ordered.where(hopeful, NO_TRY), -1, 1)] * (rounds if starts else 0)
        target = torch.cat([t for t, _, _ in columns], 1)
        start = torch.cat([torch.full_like(t, k) for t, k, _ in columns], 1)
        length = torch.cat([torch.full_like(t, steps * times) for t, _, times in columns], 1)
        group = torch.arange(target.shape[1]).clamp_max(alone).expand_as(target)
        order = (target == NO_TRY).long().argsort(dim=1, stable=True)  # tries first
        return Plan(*(t.gather(1, order) for t in (target, start, length, group)))

    def objective(scores, y: Tensor, target: Tensor, variant: Tensor) -> tuple[Tensor, ...]:
        return tuple(at(part, target) for part in defence.margins(scores).unbind(1))

    return ascend(
        defence.scores,
        images,
        labels,
        tag="joint",
        success=evades(defence),
        objective=objective,
        rule=StepTowardsWeakestMargin(ball, steps),
        where=where,
        plan=plan,
        starts=begun,
        nearness=partial(evasion_margin, defence=defence) if nearest else None,
        **loop,
    )


@torch.no_grad()
def _targets_at(defence: nn.Module, images: Tensor, labels: Tensor, where: torch.device) -> Tensor:
    """The two targets that come first where an attack on a part has ended, (N,2), or (N,1) for two classes."""
    parts = zip(images.split(128), labels.split(128), strict=True)
    found = [targets_in_turn(defence.margins(forward(defence.scores, x.to(where))), y.to(where), 2) for x, y in parts]
    return torch.cat(found).cpu()
