"""Defences that abstain, in one form: scores of an image, and per class the margins of its acceptance.

A class is accepted exactly where all of its margins are >= 0; where no class has that, the image is rejected. So one
attack serves all of them (`attacks.joint`): it raises the smallest margin of one wrong class. Your own defence is a
class with `scores` and `margins`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multishield.shield import MultiShield, lead


class Defence(nn.Module):
    """Pixels in [0,1] (B,3,H,W) to K+1 outputs (B,K+1), column K being "reject". What is to be written:

    `scores`: pixels to a tuple of tensors (B,...), with gradients to the pixels.
    `margins`: these scores to (B,M,K), M conditions of each of the K classes.
    """

    def scores(self, x: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def margins(self, scores: tuple[Tensor, ...]) -> Tensor:
        raise NotImplementedError

    def outputs(self, scores: tuple[Tensor, ...]) -> Tensor:
        """The smallest margin of each class, and 0 for "reject": the argmax is the decision, a margin of 0 accepts."""
        smallest = self.margins(scores).amin(1)
        return torch.cat([smallest, smallest.new_zeros(len(smallest), 1)], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(self.scores(x))


class Undefended(Defence):
    """The classifier alone, which never rejects: pixels to logits (B,K)."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier.eval()

    def scores(self, x: Tensor) -> tuple[Tensor]:
        return (self.classifier(x),)

    def margins(self, scores: tuple[Tensor]) -> Tensor:
        return lead(scores[0]).unsqueeze(1)


class ConfidenceThreshold(Undefended):
    """A classifier that rejects where it is not confident.

    Args:
        threshold: of the logit margin (>= 0), or of the maximum softmax probability, in 0..1.
        of: "margin" or "probability" (Hendrycks & Gimpel 2017).
    """

    def __init__(self, classifier: nn.Module, threshold: float, of: str = "margin"):
        super().__init__(classifier)
        if of not in ("margin", "probability") or not 0 <= threshold < float("inf"):
            raise ValueError(f"of is {of!r}, threshold {threshold}; accepted are 'margin' or 'probability', and >= 0")
        self.threshold, self.of = threshold, of

    def margins(self, scores: tuple[Tensor]) -> Tensor:
        if self.of == "margin":
            return super().margins(scores) - self.threshold
        sure = F.log_softmax(scores[0], 1) - math.log(max(self.threshold, 1e-30))
        return torch.stack([lead(scores[0]), sure], 1)


class RejectClass(Defence):
    """A network with K+1 outputs, the last of them trained to mean "reject"; or any module of that form."""

    parts = ("the network",)

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.eval()

    def scores(self, x: Tensor) -> tuple[Tensor]:
        return (self.network(x),)

    def margins(self, scores: tuple[Tensor]) -> Tensor:
        return lead(scores[0])[:, :-1].unsqueeze(1)

    def outputs(self, scores: tuple[Tensor]) -> Tensor:
        """The network's own outputs."""
        return scores[0]


class Unanimity(Defence):
    """Models that must agree, each with a lead of its own: pixels to scores (B,K) each, the same classes in order.

    Args:
        leads: by how much the class must lead in each model's scores; a negative one is a tolerance. With a classifier
            and CLIP this is Multi-Shield with margins.
    """

    def __init__(self, models: Sequence[nn.Module], leads: Sequence[float] | None = None):
        super().__init__()
        self.models, self.leads = nn.ModuleList(models).eval(), tuple(leads or [0.0] * len(models))
        if len(self.leads) != len(self.models) or not self.models:
            raise ValueError(f"{len(self.models)} models and {len(self.leads)} leads; give one lead per model")

    def scores(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(model(x) for model in self.models)

    def margins(self, scores: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([lead(s) - wanted for s, wanted in zip(scores, self.leads, strict=True)], 1)


class FeatureSqueezing(Unanimity):
    """A classifier that must give an image and a squeezed one the same class (after Xu et al. 2018).

    Args:
        squeeze: pixels to pixels; where it has no useful gradient it should bring one of its own, see `reduced_bits`.
        leads: of the image and of the squeezed one, see `Unanimity`.
    """

    def __init__(
        self,
        classifier: nn.Module,
        squeeze: Callable[[Tensor], Tensor] | None = None,
        leads: Sequence[float] | None = None,
    ):
        squeezed = _Behind(classifier, squeeze or reduced_bits)
        super().__init__([classifier, squeezed], leads)


class ConsistentPrediction(FeatureSqueezing):
    """A classifier that must give an image and its least favourable neighbour the same class (Chen et al. 2023).

    Args:
        radius: of the neighbourhood (Linf), in units of pixels. leads: of the image and of its neighbour.
    """

    def __init__(self, classifier: nn.Module, radius: float = 0.0055, leads: Sequence[float] | None = None):
        super().__init__(classifier, partial(neighbour, classifier, radius), leads)
        self.radius = radius

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Those of both models, in two passes instead of three."""
        own, beside = decided(self.models[0], self.radius, x)
        return own, self.models[0](beside)


class SummedLogProbabilities(Defence):
    """A classifier and CLIP that are one: the class must lead in the sum of both models' log-probabilities.

    Args:
        scale: what CLIP's cosines are multiplied with, so that both models are equally sure. threshold: the lead, >= 0.
    """

    parts = ("the sum",)

    def __init__(self, classifier: nn.Module, alignment: nn.Module, scale: float, threshold: float):
        super().__init__()
        self.classifier, self.alignment, self.scale, self.threshold = classifier, alignment, scale, threshold
        self.eval()

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.classifier(x), self.alignment(x)

    def margins(self, scores: tuple[Tensor, Tensor]) -> Tensor:
        total = scores[0].log_softmax(1) + (self.scale * scores[1]).log_softmax(1)
        return (lead(total) - self.threshold).unsqueeze(1)


class _Behind(nn.Module):
    def __init__(self, model: nn.Module, before: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model, self.before = model, before

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.before(x))


def reduced_bits(x: Tensor, bits: int = 4) -> Tensor:
    """Pixels of few bits. The gradient is the identity's (BPDA, Athalye et al. 2018): rounding has none."""
    levels = 2**bits - 1
    return x + ((x * levels).round() / levels - x).detach()


def neighbour(classifier: nn.Module, radius: float, x: Tensor) -> Tensor:
    """One signed step of that length from x against the classifier's own decision; Chen et al. take ten small ones.

    The gradient is the identity's: that of a sign is zero.
    """
    return decided(classifier, radius, x)[1]


def decided(classifier: nn.Module, radius: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """The classifier's logits for x, and `neighbour`, to which their own pass leads."""
    with torch.enable_grad():  # whoever asks for scores may not want gradients
        near = x if x.requires_grad else x.detach().requires_grad_()
        logits = classifier(near)
        (gradient,) = torch.autograd.grad(lead(logits).amax(1).sum(), near, retain_graph=True)
    step = (near - radius * gradient.sign()).clamp(0, 1) - x
    return logits if torch.is_grad_enabled() else logits.detach(), x + step.detach()


def smoothed(x: Tensor) -> Tensor:
    """The median of each pixel's 3 x 3 neighbours, with its gradient."""
    b, c, h, w = x.shape
    patches = F.unfold(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3).view(b, c, 9, h, w)
    return patches.median(2).values


@torch.no_grad()
def calibrate(
    build: Callable[[float], nn.Module], images: Tensor, rejection: float, low: float = 0.0, high: float = 1.0
) -> nn.Module:
    """The defence whose clean rejection comes nearest to the wanted one from below.

    Args:
        build: a threshold to a defence; the larger, the more is rejected. Its scores may not depend on it.
        images: clean validation images (N,3,H,W) in [0,1], never those of the evaluation.
        rejection: the wanted share, 0 <= rejection < 1.
        low, high: where the threshold is looked for, low < high; further up where too little is rejected at `high`.

    Raises:
        ValueError: the share is out of range, low is not below high, or more is rejected at `low` already.
    """
    first = build(low)
    where = next((p.device for p in first.parameters()), images.device)
    parts = [first.scores(x.to(where)) for x in images.split(128)]
    scores = tuple(torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return build(threshold_for(build, scores, rejection, low, high))


def threshold_for(
    build: Callable[[float], nn.Module],
    scores: tuple[Tensor, ...],
    rejection: float,
    low: float = 0.0,
    high: float = 1.0,
) -> float:
    """The threshold that `calibrate` chooses, from the defence's scores of the images, each (N,...).

    Args and errors are those of `calibrate`.
    """
    if not 0 <= rejection < 1 or not low < high:
        raise ValueError(
            f"rejection is {rejection}, low {low}, high {high}; accepted are 0 <= rejection < 1, and low < high"
        )

    def rejected(threshold: float) -> float:
        outputs = build(threshold).outputs(scores)
        return int((outputs.argmax(1) == outputs.shape[1] - 1).sum()) / len(outputs)

    if rejected(low) > rejection:
        raise ValueError(f"at the threshold {low}, {rejected(low):.1%} are rejected, not {rejection:.1%}; lower `low`")
    while rejected(high) <= rejection and high < 1e9:
        low, high = high, high + 2 * (high - low)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) <= rejection else (low, middle)
    return low


def as_defence(model: nn.Module) -> nn.Module:
    """A defence, as it is; any other module as one with K+1 outputs, the last of them "reject"."""
    return model if hasattr(model, "margins") else RejectClass(model)


__all__ = [
    "ConfidenceThreshold",
    "ConsistentPrediction",
    "Defence",
    "FeatureSqueezing",
    "MultiShield",
    "RejectClass",
    "SummedLogProbabilities",
    "Unanimity",
    "Undefended",
    "calibrate",
    "threshold_for",
]
