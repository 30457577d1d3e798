"""The adaptive attack of the paper's public reference, with the right reject index. `joint` says why it is weak."""

import torch
from torch import Tensor, nn

from multishield.attacks import losses
from multishield.attacks.apgd import AutoSteps
from multishield.attacks.loop import ascend
from multishield.attacks.plan import Plan
from multishield.attacks.threat_model import Ball, evades
from multishield.images import AttackedImages


def ce_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """CE(l, y) + CE(l, K) = 2 logsumexp(l) - z_y - r, with r the reject output. (B,K+1), (B,) to (B,)."""
    return losses.ce(outputs, labels) + losses.ce(outputs, torch.full_like(labels, outputs.shape[1] - 1))


def dlr_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """DLR(l, y) + DLR(l, K). While y and reject are the two largest outputs the terms cancel: no gradient at all."""
    return losses.dlr(outputs, labels) + losses.dlr(outputs, torch.full_like(labels, outputs.shape[1] - 1))


def paper_attack(shield: nn.Module, images: Tensor, labels: Tensor, *, ball: Ball, steps=100, **loop) -> AttackedImages:
    """Untargeted APGD on K+1 outputs (B,K+1), first on `ce_loss`, then on `dlr_loss`; see `multishield.attacks`."""

    def objective(scores, y: Tensor, target: Tensor, variant: Tensor) -> tuple[Tensor]:
        out = shield.outputs(scores)
        return (torch.where(variant == 0, ce_loss(out, y), dlr_loss(out, y)),)

    loop |= {"tag": "paper", "success": evades(shield), "objective": objective, "rule": AutoSteps(ball, steps)}
    return ascend(shield.scores, images, labels, plan=lambda _, y, i: Plan(y.new_full((len(y), 2), -1)), **loop)
