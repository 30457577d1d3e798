"""What all attacks share: the result, the rules of success, the ball, random starts."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Outputs of a model (B,K or K+1) and labels (B,) to success (B,) of the attacker.
Success = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AttackResult:
    """Attacked images (B,3,H,W); success (B,) bool; passes through the model that each image cost, int64 (B,).

    Where the attack failed the image is the clean one.
    """

    images: Tensor
    success: Tensor
    forwards: Tensor
    backwards: Tensor


def fooled(logits: Tensor, labels: Tensor) -> Tensor:
    """Success against a classifier: the decision is not the label."""
    return logits.argmax(1) != labels


def evaded(logits: Tensor, labels: Tensor) -> Tensor:
    """Success against a model that abstains, whose last output is "reject": accepted and wrong.

    The reject index is taken from the number of outputs (defect 1 of the public reference: it was 10 for any K).
    """
    decision = logits.argmax(1)
    return (decision != labels) & (decision != logits.shape[1] - 1)


def project(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest point in the L-inf ball of radius eps around x and in [0,1]."""
    return torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0, 1)


def random_start(x: Tensor, eps: float, ids: Tensor, seed: int, tag: str) -> Tensor:
    """Uniform points of the ball, clipped to [0,1].

    Each image has its own stream, named by (seed, tag, id): no result depends on batch size or order.
    """
    noise = torch.empty(x.shape)
    for i, name in enumerate(ids.tolist()):
        digest = hashlib.sha256(f"{seed}/{tag}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        noise[i] = torch.rand(x.shape[1:], generator=generator)
    return project(x + eps * (2 * noise.to(x.device) - 1), x, eps)
