"""Losses of logits (B,K), or of the scores of a defence, that attacks raise, each (B,)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _top(logits: Tensor, count: int, name: str) -> Tensor:
    """The `count` largest outputs (B,count), or a ValueError where there are fewer."""
    if logits.shape[1] < count:
        raise ValueError(f"the loss {name} needs at least {count} outputs, and there are {logits.shape[1]}; use ce")
    return logits.topk(count, dim=1).values


def logit_of(logits: Tensor, classes: Tensor) -> Tensor:
    """l_k for a class k per image."""
    return logits.gather(1, classes.view(-1, 1)).squeeze(1)


def best_other(logits: Tensor, classes: Tensor) -> Tensor:
    """max_{j != k} l_j for a class k per image."""
    return logits.scatter(1, classes.view(-1, 1), -torch.inf).amax(1)


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the label."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{j != y} l_j - l_y: positive exactly where the decision is wrong."""
    return best_other(logits, labels) - logit_of(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, eq. 6): (max_{i != y} l_i - l_y) / (l_pi1 - l_pi3)."""
    top = _top(logits, 3, "dlr")
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_targeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted DLR (Croce & Hein 2020, eq. 7): (l_t - l_y) / (l_pi1 - (l_pi3 + l_pi4) / 2)."""
    top = _top(logits, 4, "targeted dlr")
    return (logit_of(logits, targets) - logit_of(logits, labels)) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def evasion_margin(scores: tuple[Tensor, ...], labels: Tensor, defence: nn.Module) -> Tensor:
    """How near an image is to evasion: the smallest margin of the best wrong class, (B,), >= 0 where it is accepted.

    Several margins are divided by their spread over the classes, which with two classes would be the margin itself.
    """
    margins = defence.margins(scores)
    if margins.shape[1] > 1 and margins.shape[2] > 2:
        margins = margins / margins.std(2, keepdim=True).clamp_min(1e-12)
    return best_other(margins.amin(1), labels)
