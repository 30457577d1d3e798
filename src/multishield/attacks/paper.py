"""The adaptive attack of the paper's public reference: untargeted APGD on two losses of the K+1 outputs.

Reproduced so that its numbers can be compared, with the right reject index, seeded, and with success decided by the
shield. It is weak: `joint` says why, and is the attack whose numbers are believed.
"""

import torch
from torch import Tensor, nn

from multishield.attacks import losses
from multishield.attacks.apgd import AutoSteps
from multishield.attacks.loop import ascend
from multishield.attacks.plan import Plan
from multishield.attacks.threat_model import Ball, evaded
from multishield.images import AttackedImages


def _reject(outputs: Tensor, labels: Tensor) -> Tensor:
    return torch.full_like(labels, outputs.shape[1] - 1)


def ce_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """CE(l, y) + CE(l, K) = 2 logsumexp(l) - z_y - r, with r the reject output. (B,K+1), (B,) to (B,)."""
    return losses.ce(outputs, labels) + losses.ce(outputs, _reject(outputs, labels))


def dlr_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """DLR(l, y) + DLR(l, K). While y and reject are the two largest outputs the terms cancel: no gradient at all."""
    return losses.dlr(outputs, labels) + losses.dlr(outputs, _reject(outputs, labels))


def paper_attack(
    shield: nn.Module, images: Tensor, labels: Tensor, *, ball: Ball, steps: int = 100, **loop
) -> AttackedImages:
    """The reference's attack on K+1 outputs: APGD on `ce_loss`, then on `dlr_loss`, `steps` each.

    For the arguments see `multishield.attacks`; the shield may be any module with pixels to outputs (B,K+1).
    """

    def objective(out: Tensor, y: Tensor, target: Tensor, variant: Tensor) -> tuple[Tensor]:
        return (torch.where(variant == 0, ce_loss(out, y), dlr_loss(out, y)),)

    options = {"tag": "paper", "success": evaded, "objective": objective, "rule": AutoSteps(ball, steps)}
    return ascend(shield, images, labels, plan=lambda out, y, i: Plan.untargeted(y, 2), **options, **loop)
