"""What every attack returns, and the rule by which it counts as successful."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from multishield.models.classifier import Outputs

# Outputs and labels (B,) to success (B,) of the attacker.
Success = Callable[[Outputs, Tensor], Tensor]


@dataclass(frozen=True)
class AttackResult:
    """Attacked images (B,3,H,W); success (B,) bool; passes through the model that each image cost, int64 (B,).

    Where the attack failed the image is the clean one.
    """

    images: Tensor
    success: Tensor
    forwards: Tensor
    backwards: Tensor


def per_image(values: Tensor) -> Tensor:
    """(B,) to (B,1,1,1)."""
    return values.view(-1, 1, 1, 1)
