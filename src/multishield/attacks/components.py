"""Attacks on what a defence is made of: on one of its margins alone, and on its readiness to accept anything.

Neither counts as a success of the attacker who wants a wrong class. The first shows where `joint` should begin, and
which images it cannot break; the second is another attacker's aim.
"""

from functools import partial

import torch
from torch import Tensor, nn

from multishield.attacks.apgd import AutoSteps, likeliest
from multishield.attacks.loop import ascend
from multishield.attacks.losses import at, ce, evasion_margin, rival
from multishield.attacks.plan import Plan
from multishield.attacks.threat_model import Ball
from multishield.forward import device_of
from multishield.images import AttackedImages


def one_margin(
    defence: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    part: int,
    tag: str,
    eps: float,
    norm: str = "Linf",
    targets: int = 9,
    steps: int = 100,
    nearest: bool = False,
    **loop,
) -> AttackedImages:
    """APGD on one margin, as if the defence had no other, until a wrong class has it >= 0.

    Args:
        defence: see `joint`. part: which of its M margins.
        targets: wrong classes to try (at most K-1), after two untargeted tries: the best of them, and cross-entropy.
            Most of them are hopeless, and given up after a fifth of their steps (`apgd.HOPELESS`).
        eps, norm: see `Ball`. steps: per try. nearest: see `joint`. images, labels, tag: see `ascend`.
        loop: its other arguments.
    """

    def objective(scores, y: Tensor, target: Tensor, variant: Tensor) -> tuple[Tensor]:
        margins = defence.margins(scores)[:, part]
        untargeted = torch.where(variant == 0, rival(margins, y), ce(margins, y))
        return (torch.where(target < 0, untargeted, at(margins, target.clamp_min(0))),)

    def plan(scores, y: Tensor, index: Tensor) -> Plan:
        order = likeliest(defence.margins(scores)[:, part], y, targets)
        return Plan(torch.cat([order.new_full((len(order), 2), -1), order], 1))

    def success(scores, y: Tensor) -> Tensor:
        return rival(defence.margins(scores)[:, part], y) >= 0

    rule = AutoSteps(Ball(eps, norm), steps, aim=0.0)
    near = partial(evasion_margin, defence=defence) if nearest else None
    rules = {"tag": tag, "success": success, "objective": objective, "plan": plan, "nearness": near}
    return _run(defence, images, labels, rule=rule, **rules, **loop)


def denial(
    defence: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: str = "Linf", steps: int = 60, **loop
) -> AttackedImages:
    """Denial of service: APGD until the defence rejects, whatever the class would have been.

    First down with the smallest margin of whatever class is accepted, then with each margin of the label alone.

    Args:
        defence: see `joint`. eps, norm: see `Ball`. steps: per try. images, labels: see `ascend`. loop: its others.
    """

    def objective(scores, y: Tensor, target: Tensor, variant: Tensor) -> tuple[Tensor]:
        margins = defence.margins(scores)
        accepted = margins.amin(1).amax(1)
        own = margins.gather(2, y.view(-1, 1, 1).expand(-1, margins.shape[1], 1)).squeeze(2)
        return (-torch.where(target < 0, accepted, at(own, target.clamp_min(0))),)

    def plan(scores, y: Tensor, index: Tensor) -> Plan:
        """Here a "target" is the number of a margin."""
        parts = defence.margins(scores).shape[1]
        return Plan(torch.arange(-1, parts).expand(len(y), -1))

    def success(scores, y: Tensor) -> Tensor:
        outputs = defence.outputs(scores)
        return outputs.argmax(1) == outputs.shape[1] - 1

    rules = {"tag": "denial", "success": success, "objective": objective, "plan": plan}
    return _run(defence, images, labels, rule=AutoSteps(Ball(eps, norm), steps), **rules, **loop)


def _run(defence, images, labels, **loop) -> AttackedImages:
    return ascend(defence.scores, images, labels, where=device_of(defence), **loop)
