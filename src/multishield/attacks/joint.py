"""The attack that is believed: every condition of a defence is driven to the same wrong class.

In a sum of a defence's margins, one model drowns the other: every step goes to the margin that is further from its
boundary. No image can be broken behind a defence that cannot be broken on each of its components alone. So the attack
begins where attacks on the components have ended, and the budget goes to the images that those have broken.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multishield.attacks.loop import Rule, State, ascend
from multishield.attacks.losses import logit_of
from multishield.attacks.plan import DIVERSE, NO_TRY, Plan
from multishield.attacks.threat_model import Ball, evades, per_image
from multishield.forward import scores_of
from multishield.images import AttackedImages

# For images that only all components together hold: the length of long tries; rounds and targets of diverse ones.
LONG, ROUNDS, WIDE = 5, 2, 9


def targets_in_turn(margins: Tensor, labels: Tensor, count: int) -> Tensor:
    """The wrong classes to try, (B,count): the first margin's likeliest, the second's, ..., the first one's second, ...

    A sum of the margins (B,M,K) would need a scale between them. At most K-1 classes are returned.
    """
    components = margins.shape[1]
    wrong = margins.scatter(2, labels.view(-1, 1, 1).expand(-1, components, 1), -torch.inf)
    ranks = wrong.argsort(dim=2, descending=True, stable=True).argsort(2)  # the label is last
    turn = (components * ranks + torch.arange(components, device=ranks.device)[:, None]).amin(1)
    return turn.argsort(1)[:, : min(count, margins.shape[2] - 1)]


class StepTowardsWeakestMargin(Rule):
    """Signed steps of an accumulated direction, from eps/4 down to eps/40, each for the margin that needs it most.

    That is the margin furthest from its boundary: m / |grad m|, in the dual norm, is the distance in pixels that a step
    in the steepest direction would have to go, for cosines as for logits.
    """

    def begin(self, x: Tensor, clean: Tensor, streams: Tensor) -> State:
        return {"velocity": torch.zeros_like(x)}

    def move(self, state: State, margins: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
        slopes = torch.stack([self.ball.slope(g) for g in gradients])
        weakest = (torch.stack(margins) / slopes).argmin(0, keepdim=True)
        gradient = gradients[0]
        for number, other in enumerate(gradients[1:], 1):
            gradient = torch.where(per_image(weakest[0] == number, other), other, gradient)
        unit = gradient / per_image(slopes.gather(0, weakest)[0], gradient)
        state["velocity"].mul_(0.75).add_(unit)
        size = self.ball.eps / 4 * (1 - 0.9 * state["step"] / state["steps"])
        return self.inside(self.ball.ascent(state["velocity"]).mul_(per_image(size, unit)).add_(state["x"]), state)


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
    **loop,
) -> AttackedImages:
    """Drive all margins to one target after the other, until the defence accepts any wrong class.

    Args:
        defence: a `MultiShield`, or another one with `scores`, `margins` and `outputs` (see `Defence`).
        starts: the same images after attacks on the components alone. Where one of them has failed there is one random
            try; an image that all have broken gets all tries, and at the end long and diverse ones.
        targets: wrong classes to try from random points, in the order of `targets_in_turn` (at most K-1).
        steps: steps per try. restarts: random starts per target. long, rounds: see `joint.LONG`.

    For the other arguments see `multishield.attacks`. With `nearest=True` a looser threshold may accept the images.
    """
    begun = [ball.project(start.images, images) for start in starts]  # they may be of a larger radius
    named = [targets_in_turn(defence.margins(scores_of(defence, x, loop.get("batch_size"))), labels, 2) for x in begun]
    lost = torch.stack([start.success for start in starts], 1) if starts else torch.ones(len(images), 1).bool()

    def plan(scores, y: Tensor, index: Tensor) -> Plan:
        """Two targets from each start, random tries, long ones, rounds of diverse ones at `WIDE` targets or more."""
        wide, hopeful = targets_in_turn(defence.margins(scores), y, max(targets, WIDE)).cpu(), lost[index].all(1, True)
        drawn, begin = wide[:, :targets].repeat(1, restarts), [t[index] for t in named]
        # Targets (B,V), the number of the start, and the length in units of `steps`.
        tries = [(t.where(lost[index, k, None], NO_TRY), k, 1) for k, t in enumerate(begin)] + [(drawn[:, :1], -1, 1)]
        tries += [(drawn[:, 1:].where(hopeful, NO_TRY), -1, 1)]
        if long > 1:  # tries of the same length would be the same again
            tries += [(t[:, :1].where(hopeful, NO_TRY), k, long) for k, t in enumerate(begin)]
        tries += [(wide.where(hopeful, NO_TRY), DIVERSE, 1)] * (rounds if starts else 0)
        target = torch.cat([t for t, _, _ in tries], 1)
        start, length = (torch.cat([torch.full_like(t[0], t[i]) for t in tries], 1) for i in (1, 2))
        group = torch.arange(target.shape[1]).clamp_max(1).expand_as(target)  # most images are lost to the first try
        order = (target == NO_TRY).long().argsort(dim=1, stable=True)  # tries first
        return Plan(*(t.gather(1, order) for t in (target, start, steps * length, group)))

    def objective(scores, y: Tensor, target: Tensor, variant: Tensor) -> tuple[Tensor, ...]:
        return tuple(logit_of(margin, target) for margin in defence.margins(scores).unbind(1))

    options = {"success": evades(defence), "objective": objective, "rule": StepTowardsWeakestMargin(ball, steps)}
    return ascend(defence.scores, images, labels, tag="joint", plan=plan, starts=begun, **options, **loop)
