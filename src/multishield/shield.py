"""Multi-Shield, the whole method: alignment gap, reject logit, and the module that abstains (arXiv 2412.10353)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def check_pixels(images: Tensor, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
    """Raise ValueError unless images (N,...) are pixels: floating point within the bounds (low, high)."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images are {given}; pixels are floating point in [0,1]: divide bytes by 255")
    if torch.compiler.is_compiling() or not len(images):
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if not (low >= bounds[0] and high <= bounds[1]):
        finite = images.detach().flatten(1).isfinite().all(1)
        if not finite.all():
            raise ValueError(f"image {int((~finite).nonzero()[0])} has a pixel that is not a finite number")
        accepted = "[{:g},{:g}]: normalise in the model".format(*bounds)
        raise ValueError(f"pixels lie in [{low:.3g}, {high:.3g}]; they must lie in {accepted}")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and every flag back afterwards.

    A batch norm in training mode would let other images decide, and learn from them.
    """
    training = [part for part in module.modules() if getattr(part, "training", False)]  # a frozen script has none
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def alignment_gap(logits: Tensor, cosines: Tensor) -> Tensor:
    """g = max_j c_j - c_k with k the classifier's prediction: 0 where CLIP agrees. (B,) >= 0."""
    predicted = logits.argmax(1, keepdim=True)
    return cosines.max(1).values - cosines.gather(1, predicted).squeeze(1)


def shield_output(logits: Tensor, cosines: Tensor, tolerance: float) -> Tensor:
    """K+1 outputs: the logits z (B,K), and r = max z + g - tau in column K (paper, equation of the reject logit).

    argmax = K exactly where g > tau, the tolerance >= 0 in units of cosine. A floating-point sum loses a small g beside
    a large max z. So r is moved to the next float above max z where rounding would have changed the sign of g - tau.
    Raises ValueError if the cosines (B,K) differ in shape from the logits.
    """
    if logits.ndim != 2 or logits.shape != cosines.shape:
        shapes = f"the classifier's scores have the shape {tuple(logits.shape)}, CLIP's {tuple(cosines.shape)}"
        raise ValueError(f"{shapes}; both must be (B,K): the same classes in the same order")
    top = logits.max(1).values
    excess = alignment_gap(logits, cosines) - tolerance
    reject = top + excess
    above = torch.nextafter(top.detach(), torch.full_like(top, torch.inf))
    reject = torch.where((excess > 0) & (reject <= top), reject + (above - reject).detach(), reject)
    # An exact tie at g = tau is accepted: argmax returns the first of equal entries, which is the class.
    return torch.cat([logits, reject.unsqueeze(1)], 1)


def margin_over_others(scores: Tensor) -> Tensor:
    """The margin of each class over the best other one: s_t - max_{j != t} s_j, (B,K) to (B,K), K >= 2."""
    top = scores.topk(2, dim=1).values
    return scores - torch.where(scores == top[:, :1], top[:, 1:], top[:, :1])


class MultiShield(nn.Module):
    """One differentiable module from pixels in [0,1] (B,3,H,W) to K+1 outputs (B,K+1); column K is "reject".

    The classifier takes pixels to logits z (B,K), the alignment to cosines c (B,K); both are asked in evaluation mode,
    each with its own copy of the pixels. The class k is accepted if g = max_j c_j - c_k <= tau, the tolerance: 0 is the
    paper's text (reject any disagreement), 0.001 the public reference code. Raises ValueError if it is negative or not
    finite, and in a call for images that are no pixels in [0,1].
    """

    components = ("the classifier", "CLIP")

    def __init__(self, classifier: nn.Module, alignment: nn.Module, tolerance: float = 0.001):
        super().__init__()
        if not 0 <= tolerance < float("inf"):
            raise ValueError(f"tolerance is {tolerance}; it must be a finite number >= 0")
        self.classifier, self.alignment, self.tolerance = classifier, alignment, tolerance

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits z (B,K) and cosines c (B,K)."""
        with evaluating(self):
            return self.classifier(x.clone()), self.alignment(x.clone())

    def margins(self, scores: tuple[Tensor, Tensor]) -> Tensor:
        """The rule as margins (B,2,K), both >= 0 where a class is accepted: as in `outputs`, but where logits tie."""
        return torch.stack([margin_over_others(scores[0]), margin_over_others(scores[1]) + self.tolerance], 1)

    def outputs(self, scores: tuple[Tensor, Tensor]) -> Tensor:
        """K+1 outputs (B,K+1) of both scores. The rule is applied here alone: argmax is the decision."""
        return shield_output(*scores, self.tolerance)

    def standalone(self) -> dict[str, nn.Module]:
        """The models that can classify alone, in the order of the components."""
        return {"classifier": self.classifier, "CLIP": self.alignment}

    def forward(self, x: Tensor) -> Tensor:
        check_pixels(x)
        return self.outputs(self.scores(x))
