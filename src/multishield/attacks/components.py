"""Attacks on one margin of a defence alone, which show where `joint` should begin, and on its readiness to accept."""

import torch
from torch import Tensor, nn

from multishield.attacks.apgd import AutoSteps, likeliest
from multishield.attacks.loop import ascend
from multishield.attacks.losses import best_other, ce, logit_of
from multishield.attacks.plan import Plan
from multishield.attacks.threat_model import Ball
from multishield.images import AttackedImages


def one_margin(
    defence: nn.Module, images: Tensor, labels: Tensor, *, component: int, ball: Ball, targets=9, steps=100, **loop
) -> AttackedImages:
    """APGD, `steps` per try, on the margin of that number, as if the defence had no other, until a wrong class has it.

    Two tries are untargeted: for the best wrong class, and at most 50 steps on the cross-entropy. Then come `targets`
    wrong classes, at most K-1; most are hopeless, and given up early. `tag` names the attack. See `joint` for others.
    """

    def objective(scores, y: Tensor, target: Tensor, variant: Tensor) -> tuple[Tensor]:
        margins = defence.margins(scores)[:, component]
        untargeted = torch.where(variant == 0, best_other(margins, y), ce(margins, y))
        return (torch.where(target < 0, untargeted, logit_of(margins, target.clamp_min(0))),)

    def plan(scores, y: Tensor, index: Tensor) -> Plan:
        order = likeliest(defence.margins(scores)[:, component], y, targets)
        target = torch.cat([order.new_full((len(order), 2), -1), order], 1)
        number = torch.arange(target.shape[1]).expand_as(target)
        # The targets run side by side, so that the few images that resist fill the batch.
        return Plan(target, steps=torch.where(number == 1, min(steps, 50), steps), group=number.clamp_max(2))

    def success(scores, y: Tensor) -> Tensor:
        return best_other(defence.margins(scores)[:, component], y) >= 0

    options = {"success": success, "objective": objective, "plan": plan, "rule": AutoSteps(ball, steps, aim=0.0)}
    return ascend(defence.scores, images, labels, **options, **loop)


def denial(defence: nn.Module, images: Tensor, labels: Tensor, *, ball: Ball, steps=60, **loop) -> AttackedImages:
    """Denial of service: APGD, `steps` per try, until the defence rejects, whatever the class would have been.

    The first try lowers the smallest margin of any accepted class, the later ones ("targets") each margin of the label;
    the last one raises the entropy of the classes' smallest margins.
    """

    def objective(scores, y: Tensor, target: Tensor, variant: Tensor) -> tuple[Tensor]:
        margins = defence.margins(scores)
        accepted = margins.amin(1).amax(1)
        own = margins.gather(2, y.view(-1, 1, 1).expand(-1, margins.shape[1], 1)).squeeze(2)
        last, logs = own.shape[1], margins.amin(1).log_softmax(1)
        lowered = torch.where(target < 0, accepted, logit_of(own, target.clamp(0, last - 1)))
        return (-torch.where(target == last, (logs.exp() * logs).sum(1), lowered),)

    def plan(scores, y: Tensor, index: Tensor) -> Plan:
        target = torch.arange(-1, defence.margins(scores).shape[1] + 1).expand(len(y), -1)
        return Plan(target, group=(target + 1).clamp_max(1))  # side by side after the first

    def success(scores, y: Tensor) -> Tensor:
        outputs = defence.outputs(scores)
        return outputs.argmax(1) == outputs.shape[1] - 1

    options = {"tag": "denial", "success": success, "objective": objective, "plan": plan}
    return ascend(defence.scores, images, labels, rule=AutoSteps(ball, steps), **options, **loop)
