"""Transfer: images that were made against another model, shown to this one."""

import torch
from torch import Tensor, nn

from multishield.attacks.loop.result import Success
from multishield.attacks.threat_model import fooled
from multishield.models.classifier import device_of, forward


@torch.no_grad()
def transfer(
    model: nn.Module, candidates: Tensor, labels: Tensor, *, success: Success = fooled, batch_size: int = 128
) -> Tensor:
    """Which of the candidates break the model: bool (N,).

    Args:
        model: pixels to outputs.
        candidates: (N,3,H,W) in [0,1], each an image of the threat model's ball. labels: (N,).
        success: the rule that decides on the model's outputs.
    """
    where, broken = device_of(model), []
    for x, y in zip(candidates.split(batch_size), labels.split(batch_size), strict=True):
        broken.append(success(forward(model, x.to(where)), y.to(where)).cpu())
    return torch.cat(broken)
