"""Transfer: images that were made against another model, shown to this one."""

import torch
from torch import Tensor, nn

from multishield.attacks.loop.result import AttackResult, Success
from multishield.attacks.threat_model import fooled
from multishield.models.classifier import forward


@torch.no_grad()
def transfer(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    candidates: Tensor,
    success: Success = fooled,
    batch_size: int = 128,
) -> AttackResult:
    """Which of the candidates break the model.

    Args:
        model: pixels to outputs. images, labels: (N,3,H,W) in [0,1]; (N,).
        candidates: (N,3,H,W), an image of the threat model's ball for each of `images`.
        success: the rule that decides on the model's outputs.
    """
    where, broken = next(model.parameters()).device, []
    for x, y in zip(candidates.split(batch_size), labels.split(batch_size), strict=True):
        broken.append(success(forward(model, x.to(where)), y.to(where)).cpu())
    won = torch.cat(broken)
    passes = torch.ones(len(images), dtype=torch.long)
    return AttackResult(torch.where(won.view(-1, 1, 1, 1), candidates, images), won, passes, torch.zeros_like(passes))
