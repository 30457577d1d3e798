"""The adaptive attack of the paper's public reference: untargeted APGD on two losses of the K+1 outputs.

Reproduced so that its numbers can be compared, with the right reject index, seeded, and with success decided by the
shield. It is weak: see `joint` for why, and for the attack whose numbers are believed.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multishield.attacks.apgd import apgd
from multishield.attacks.base import AttackResult, evaded


def ce_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """CE(l, y) + CE(l, K) = 2 logsumexp(l) - z_y - r, with r the reject output. (B,K+1), (B,) to (B,)."""
    reject = torch.full_like(labels, outputs.shape[1] - 1)
    return F.cross_entropy(outputs, labels, reduction="none") + F.cross_entropy(outputs, reject, reduction="none")


def dlr(outputs: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, eq. 6): -(l_y - max_{i != y} l_i) / (l_pi1 - l_pi3)."""
    ordered = outputs.sort(dim=1).values
    own = outputs.gather(1, labels.view(-1, 1)).squeeze(1)
    rival = torch.where(own == ordered[:, -1], ordered[:, -2], ordered[:, -1])
    return -(own - rival) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def dlr_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """DLR(l, y) + DLR(l, K). While y and reject are the two largest outputs the terms cancel: no gradient at all."""
    return dlr(outputs, labels) + dlr(outputs, torch.full_like(labels, outputs.shape[1] - 1))


def paper(
    shield: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    seed: int,
    ids: Tensor,
    steps: int = 100,
) -> AttackResult:
    """The reference's attack: APGD on `ce_loss`, then on `dlr_loss` for the images that are left.

    Args: see `apgd`; `shield` maps pixels to K+1 outputs.
    """
    first = apgd(
        shield, images, labels, eps=eps, seed=seed, ids=ids, success=evaded, loss=ce_loss, tag="paper-ce", steps=steps
    )
    left = ~first.success
    if not left.any():
        return first
    second = apgd(
        shield,
        images[left],
        labels[left],
        eps=eps,
        seed=seed,
        ids=ids[left],
        success=evaded,
        loss=dlr_loss,
        tag="paper-dlr",
        steps=steps,
    )
    merged = AttackResult(first.images.clone(), first.success.clone(), first.forwards.clone(), first.backwards.clone())
    merged.images[left], merged.success[left] = second.images, second.success
    merged.forwards[left] += second.forwards
    merged.backwards[left] += second.backwards
    return merged
