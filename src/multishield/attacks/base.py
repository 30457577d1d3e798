"""What all attacks share: the result, the rules of success, the threat model's ball, named random numbers."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from multishield.classifiers import Outputs
from multishield.decision import shield_output

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


def fooled(logits: Tensor, labels: Tensor) -> Tensor:
    """Success against a classifier: the decision is not the label."""
    return logits.argmax(1) != labels


def evaded(outputs: Tensor, labels: Tensor) -> Tensor:
    """Success against a model that abstains, whose last output is "reject": accepted and wrong.

    The reject index is taken from the number of outputs (defect 1 of the public reference: it was 10 for any K).
    """
    decision = outputs.argmax(1)
    return (decision != labels) & (decision != outputs.shape[1] - 1)


def evaded_by(tolerance: float) -> Success:
    """`evaded` for attacks that look at both scores: outputs are (z, c), as `MultiShield.scores` returns them."""
    return lambda scores, labels: evaded(shield_output(*scores, tolerance), labels)


def per_image(values: Tensor) -> Tensor:
    """(B,) to (B,1,1,1)."""
    return values.view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Ball:
    """The threat model: images in [0,1] whose L-inf or L2 distance from the clean one is at most eps."""

    eps: float
    norm: str = "Linf"

    def __post_init__(self):
        if self.norm not in ("Linf", "L2"):
            raise ValueError(f"norm is {self.norm!r}; accepted are 'Linf' and 'L2'")

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """A point of the ball: the nearest one for L-inf; for L2 scaled back to the sphere, then clipped to [0,1]."""
        if self.norm == "Linf":
            return torch.minimum(torch.maximum(x_adv, x - self.eps), x + self.eps).clamp(0, 1)
        step = x_adv - x
        # A hair inside, so that rounding does not carry a float32 sum over the edge.
        return (x + step * per_image((self.eps * (1 - 1e-6) / _norms(step)).clamp(max=1))).clamp(0, 1)

    def ascent(self, gradient: Tensor) -> Tensor:
        """The steepest direction of length one: the sign for L-inf, the normalised gradient for L2."""
        return gradient.sign() if self.norm == "Linf" else gradient / per_image(_norms(gradient))

    def slope(self, gradient: Tensor) -> Tensor:
        """(B,): the rise per unit of distance in the steepest direction: the gradient's dual norm, L1 or L2."""
        return gradient.flatten(1).abs().sum(1).clamp_min(1e-12) if self.norm == "Linf" else _norms(gradient)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """(B,): how far each image was moved, in this norm."""
        return (x_adv - x).flatten(1).abs().amax(1) if self.norm == "Linf" else (x_adv - x).flatten(1).norm(dim=1)

    def random(self, x: Tensor, keys: Tensor) -> Tensor:
        """Random points of the ball, clipped to [0,1]: uniform for L-inf; for L2 of uniform radius.

        Args:
            keys: (B,), see `keys`.
        """
        noise = 2 * uniform(keys, x[0].numel()).view_as(x) - 1
        if self.norm == "L2":
            noise = noise / per_image(_norms(noise)) * per_image(uniform(keys + 1, 1)[:, 0])
        return self.project(x + self.eps * noise, x)


def _norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).clamp_min(1e-12)


def keys(seed: int, tag: str, ids: Tensor) -> Tensor:
    """Names of random streams, int64 (B,): one per (seed, tag, image id).

    Named, not drawn: no image's numbers depend on batch size, order, or on which images are left.
    """
    digest = hashlib.sha256(f"{seed}/{tag}".encode()).digest()
    return _mix(ids + int.from_bytes(digest[:7], "big"))


def uniform(keys: Tensor, count: int) -> Tensor:
    """`count` numbers in [0,1) for each key: float32 (B,count), the same on every device.

    A counter through splitmix64's finaliser (Steele et al. 2014); 24 bits of each word become a float.
    """
    counter = torch.arange(count, device=keys.device) * -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
    return (_shift(_mix(keys[:, None] + counter), 40)).float() * 2.0**-24


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """splitmix64's finaliser; int64 products wrap, as they must."""
    z = (z ^ _shift(z, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ _shift(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return z ^ _shift(z, 31)
