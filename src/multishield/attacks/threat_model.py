"""The threat model: the ball of images that an attacker may show, and the rules by which an attack succeeds."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multishield.attacks.random_streams import uniform
from multishield.forward import Outputs

# Outputs and labels (B,) to the attacker's success (B,).
Success = Callable[[Outputs, Tensor], Tensor]


def fooled(logits: Tensor, labels: Tensor) -> Tensor:
    """Success against a classifier: the decision is not the label."""
    return logits.argmax(1) != labels


def evaded(outputs: Tensor, labels: Tensor) -> Tensor:
    """Success against a model that abstains, whose last output is "reject": the decision is accepted and wrong."""
    decision = outputs.argmax(1)  # defect 1 of the public reference: its reject index was 10 for any K
    return (decision != labels) & (decision != outputs.shape[1] - 1)


def evades(defence: nn.Module) -> Success:
    """`evaded` for attacks that see the scores of a defence."""
    return lambda scores, labels: evaded(defence.outputs(scores), labels)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """(B,) to (B,1,...,1), with as many dimensions as `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Ball:
    """All images within `bounds` (low, high) whose distance from the clean image is at most `eps`, in the same units.

    The norm is "Linf" or "L2"; another one raises ValueError.
    """

    eps: float
    norm: str = "Linf"
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if self.norm not in ("Linf", "L2"):
            raise ValueError(f"norm is {self.norm!r}; accepted are 'Linf' and 'L2'")

    def __str__(self) -> str:
        in_bytes = 255 * self.eps
        whole = self.eps < 0.1 and abs(in_bytes - round(in_bytes)) < 1e-6
        return f"{self.norm} {in_bytes:.0f}/255" if whole else f"{self.norm} {self.eps:.4g}"

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Distance of each image from the clean one, (B,)."""
        return (x_adv - x).abs().flatten(1).amax(1) if self.norm == "Linf" else (x_adv - x).flatten(1).norm(dim=1)

    def checked_distance(self, x_adv: Tensor, x: Tensor, name: str) -> Tensor:
        """`distance` (N,) of images of the attack `name`. Raises RuntimeError if one left the ball or the bounds."""
        distance, (low, high) = self.distance(x_adv, x), self.bounds
        rounding = 1e-6 * max(high - low, abs(low), abs(high))
        if len(x) and (not distance.max() <= self.eps + rounding or x_adv.min() < low or x_adv.max() > high):
            far = f"image {int(distance.argmax())} of {name}, the farthest, is {distance.max():.6f} away"
            raise RuntimeError(f"{far} (eps is {self.eps:.6f}), or an image leaves [{low:g},{high:g}]")
        return distance

    def limits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest value that each pixel of x may take, each like x."""
        reach = self.eps if self.norm == "Linf" else torch.inf
        return (x - reach).clamp_(min=self.bounds[0]), (x + reach).clamp_(max=self.bounds[1])

    def project(self, x_adv: Tensor, x: Tensor, limits: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """A point of the ball: the nearest one for L-inf; for L2 scaled back to the sphere, then clipped.

        Where the `limits` of x are known, they need not be computed again.
        """
        if self.norm == "L2":
            step = x_adv - x
            # The factor keeps the point a hair inside, so that rounding does not carry a float32 sum over the edge.
            x_adv = x + step * per_image((self.eps * (1 - 1e-6) / _norms(step)).clamp(max=1), x)
        return x_adv.clamp(*(limits or self.limits(x)))

    def ascent(self, gradient: Tensor) -> Tensor:
        """The steepest direction of length one: the sign for L-inf, the normalised gradient for L2."""
        return gradient.sign() if self.norm == "Linf" else gradient / per_image(_norms(gradient), gradient)

    def slope(self, gradient: Tensor) -> Tensor:
        """The rise per unit of distance in the steepest direction, (B,): the gradient's dual norm, L1 or L2."""
        return gradient.flatten(1).abs().sum(1).clamp_min(1e-12) if self.norm == "Linf" else _norms(gradient)

    def random(self, x: Tensor, keys: Tensor) -> Tensor:
        """Random points of the ball, clipped: uniform for L-inf; for L2 of uniform radius. Keys (B,)."""
        noise = 2 * uniform(keys, x[0].numel()).view_as(x) - 1
        if self.norm == "L2":
            noise = noise / per_image(_norms(noise), x) * per_image(uniform(keys + 1, 1)[:, 0], x)
        return self.project(x + self.eps * noise, x)


def _norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).clamp_min(1e-12)
