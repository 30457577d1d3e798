"""The attack that is believed: every condition of a defence is driven to the same wrong class.

A defence accepts a class where all of its margins are >= 0 (see `defences`). Each margin has its own gradient, and the
gradients do not add up: in a sum, one model drowns the other. Every step goes to the margin that is further from its
boundary. Success is the defence's own decision, never the loss.

No image can be broken behind a defence that cannot be broken on each of its components alone. So the attack begins
where attacks on the components have ended, and the budget goes to the images that those have broken.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from multishield.attacks.loop import Rule, State, ascend
from multishield.attacks.losses import evasion_margin, logit_of
from multishield.attacks.plan import NO_TRY, Plan
from multishield.attacks.threat_model import Ball, evades, per_image
from multishield.forward import device_of, scores_of
from multishield.images import AttackedImages

# For images that every component has lost and the defence has not: the length of the long tries from each start, in
# units of the other tries, and the rounds of tries from more random points.
LONG, ROUNDS = 5, 3


def targets_in_turn(margins: Tensor, labels: Tensor, count: int) -> Tensor:
    """The wrong classes to try: the first margin's likeliest, the second's, ..., the first one's second, ... (B,count).

    Nobody knows beforehand which component is harder to convince, so each names its own candidates. A sum would need a
    scale between them, and one of them would choose for all.

    Args:
        margins: (B,M,K), of clean images. count: at most K-1 classes are returned.
    """
    components = margins.shape[1]
    wrong = margins.scatter(2, labels.view(-1, 1, 1).expand(-1, components, 1), -torch.inf)
    ranks = wrong.argsort(dim=2, descending=True, stable=True).argsort(2)  # the label is last
    turn = (components * ranks + torch.arange(components, device=ranks.device)[:, None]).amin(1)
    return turn.argsort(1)[:, : min(count, margins.shape[2] - 1)]


class StepTowardsWeakestMargin(Rule):
    """Signed steps of an accumulated direction, from eps/4 down to eps/40, each for the margin that needs it most.

    That is the margin furthest from its boundary by its gradient: m / |grad m|, in the dual norm, is the distance that
    a step in the steepest direction would have to go. The unit is pixels for every margin, so that cosines and logits
    can be compared without a scale.
    """

    decay = 0.75

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
    ball: Ball,
    starts: Sequence[AttackedImages] = (),
    targets: int = 3,
    steps: int = 60,
    restarts: int = 1,
    long: int = LONG,
    rounds: int = ROUNDS,
    nearest: bool = False,
    **loop,
) -> AttackedImages:
    """Drive all margins to one target after the other, until the defence accepts any wrong class.

    Args:
        defence: a `MultiShield`, or another one with `scores`, `margins` and `outputs` (see `defences`).
        ball: the threat model.
        starts: the same images after attacks on the components alone. An image that one of them has not broken gets
            one random try; an image that all have broken gets all tries, and at the end long and more random ones.
        targets: wrong classes to try from random points, in the order of `targets_in_turn` (at most K-1).
        steps: steps per try. restarts: random starts per target. long, rounds: see `LONG`.
        nearest: return an image that resisted at its point nearest to evasion. It may be accepted by a looser
            threshold than the attacked one.
        images, labels: see `ascend`. loop: its other arguments, `seed` and `ids` among them.
    """
    begun = [ball.project(start.images, images) for start in starts]  # they may be of a larger radius
    named = [targets_in_turn(defence.margins(scores_of(defence, x)), labels, 2) for x in begun]
    lost = torch.stack([start.success for start in starts], 1) if starts else torch.ones(len(images), 1).bool()

    def plan(scores, y: Tensor, index: Tensor) -> Plan:
        ordered = targets_in_turn(defence.margins(scores), y, targets).cpu()
        more = rounds if starts else 0
        return _plan(ordered, [t[index] for t in named], lost[index], steps, restarts, long, more)

    def objective(scores, y: Tensor, target: Tensor, variant: Tensor) -> tuple[Tensor, ...]:
        return tuple(logit_of(margin, target) for margin in defence.margins(scores).unbind(1))

    rule, nearness = StepTowardsWeakestMargin(ball, steps), partial(evasion_margin, defence=defence)
    options = {"success": evades(defence), "objective": objective, "rule": rule, "device": device_of(defence)}
    options |= {"plan": plan, "starts": begun, "nearness": nearness if nearest else None}
    return ascend(defence.scores, images, labels, tag="joint", **options, **loop)


def _plan(
    ordered: Tensor, named: list[Tensor], lost: Tensor, steps: int, restarts: int, long: int, rounds: int
) -> Plan:
    """The `Plan` of some images: two targets from each start, the random tries, the long ones, more random ones.

    Args:
        ordered: targets from random points (B,V). named: per start the targets there (B,2).
        lost: whether the attack on each component has broken the image (B,starts).
    """
    drawn, hopeful = ordered.repeat(1, restarts), lost.all(1, keepdim=True)
    columns = [(t.where(lost[:, k, None], NO_TRY), k, 1) for k, t in enumerate(named)]
    columns += [(drawn[:, :1], -1, 1)]
    alone = sum(t.shape[1] for t, _, _ in columns)
    columns += [(drawn[:, 1:].where(hopeful, NO_TRY), -1, 1)]
    if long > 1:  # tries of the same length would be the same again
        columns += [(t[:, :1].where(hopeful, NO_TRY), k, long) for k, t in enumerate(named)]
    columns += [(ordered.where(hopeful, NO_TRY), -1, 1)] * rounds
    target = torch.cat([t for t, _, _ in columns], 1)
    start = torch.cat([torch.full_like(t, k) for t, k, _ in columns], 1)
    length = torch.cat([torch.full_like(t, steps * times) for t, _, times in columns], 1)
    group = torch.arange(target.shape[1]).clamp_max(alone).expand_as(target)
    order = (target == NO_TRY).long().argsort(dim=1, stable=True)  # tries first
    return Plan(*(t.gather(1, order) for t in (target, start, length, group)))
