"""Defences that abstain, in one form: the scores of an image, and per class the margins of its acceptance.

A class is accepted exactly where all of its margins are >= 0; where no class has that, the image is rejected.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multishield.forward import own_settings, scores_of
from multishield.images import pixels_of
from multishield.shield import check_pixels, evaluating, margin_over_others


class Defence(nn.Module):
    """Pixels in [0,1] (B,C,H,W) to K+1 outputs (B,K+1), column K being "reject". A subclass writes two methods.

    A call asks its models in evaluation mode. Raises ValueError for images that are no pixels in [0,1].

    `scores(x)`: pixels to a tuple of tensors (B,...), with gradients to the pixels.
    `margins(scores)`: these scores to (B,M,K), M conditions of each of the K classes.

    It may set `components`, the names of its margins, and write `standalone()`: its models that can classify alone, by
    name, in the order of the components.
    """

    def outputs(self, scores: tuple[Tensor, ...]) -> Tensor:
        """The smallest margin of each class, and 0 for "reject": the argmax is the decision, a margin of 0 accepts."""
        return F.pad(self.margins(scores).amin(1), (0, 1))

    def forward(self, x: Tensor) -> Tensor:
        check_pixels(x)
        with evaluating(self):
            return self.outputs(self.scores(x))


class Unanimity(Defence):
    """Models that must agree: pixels to scores (B,K) each, the same classes in order.

    `required` are the margins over the other classes that each model must show; a negative one is a tolerance. With a
    classifier and CLIP this is Multi-Shield with margins. Raises ValueError if there is not one margin per model.
    """

    def __init__(self, models: Sequence[nn.Module], required: Sequence[float] | None = None):
        super().__init__()
        self.models, self.required = nn.ModuleList(models), tuple(required or [0.0] * len(models))
        if len(self.required) != len(self.models) or not self.models:
            raise ValueError(f"{len(self.models)} models, {len(self.required)} required margins; give one per model")

    def scores(self, x: Tensor) -> tuple[Tensor, ...]:
        answers = {model: model(x.clone()) for model in self.models}  # one must not change the pixels of another
        return tuple(answers[model] for model in self.models)  # one that stands twice is asked once

    def margins(self, scores: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([margin_over_others(s) - r for s, r in zip(scores, self.required, strict=True)], 1)


class Undefended(Unanimity):
    """The classifier alone, which never rejects: pixels to logits (B,K)."""

    def __init__(self, classifier: nn.Module):
        super().__init__([classifier])
        self.classifier = classifier


class ConfidenceThreshold(Undefended):
    """A classifier that rejects images on which it is not confident.

    The threshold is that of the logit margin (>= 0), or `of` the maximum softmax "probability", in 0..1 (Hendrycks &
    Gimpel 2017). Raises ValueError if `of` is another text, or the threshold is negative or not finite.
    """

    def __init__(self, classifier: nn.Module, threshold: float, of: str = "margin"):
        super().__init__(classifier)
        if of not in ("margin", "probability") or not 0 <= threshold < float("inf"):
            raise ValueError(f"of is {of!r}, threshold {threshold}; accepted are 'margin' or 'probability', and >= 0")
        self.threshold, self.of = threshold, of

    def margins(self, scores: tuple[Tensor]) -> Tensor:
        margins = super().margins(scores)
        if self.of == "margin":
            return margins - self.threshold
        sure = F.log_softmax(scores[0], 1) - math.log(max(self.threshold, 1e-30))
        return torch.cat([margins, sure.unsqueeze(1)], 1)

    def standalone(self) -> dict[str, nn.Module]:
        return {"classifier": self.classifier}


class RejectClass(Unanimity):
    """A network with K+1 outputs, the last of them trained to mean "reject"; or any module of that form."""

    components = ("the network",)

    def __init__(self, network: nn.Module):
        super().__init__([network])

    def margins(self, scores: tuple[Tensor]) -> Tensor:
        return super().margins(scores)[..., :-1]

    def outputs(self, scores: tuple[Tensor]) -> Tensor:
        """The network's own outputs."""
        return scores[0]


class FeatureSqueezing(Unanimity):
    """A classifier that must give an image and a squeezed one the same class (after Xu et al. 2018).

    `squeeze` takes pixels to pixels, by default to 4 bits. Where its gradient is useless it should bring one of its
    own, as `reduced_bits` does. `required`: see `Unanimity`.
    """

    def __init__(self, classifier: nn.Module, squeeze: Callable | None = None, required: Sequence[float] | None = None):
        super().__init__([classifier, classifier], required)
        self.squeeze = squeeze or reduced_bits

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.models[0](x.clone()), self.models[0](self.squeeze(x.clone()))


class ConsistentPrediction(Unanimity):
    """A classifier that must give an image and its least favourable neighbour the same class (CPR, Chen et al. 2023).

    So many signed `steps` of length `size` against the classifier's own decision find the neighbour, at most `radius`
    away (Linf, in pixels). Its gradient is the identity's: that of a sign is zero. `required`: see `Unanimity`.
    """

    def __init__(self, classifier: nn.Module, radius=0.0055, required=None, steps: int = 10, size: float = 0.001):
        super().__init__([classifier, classifier], required)
        self.radius, self.steps, self.size = radius, steps, size

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        classifier, moved = self.models[0], torch.zeros_like(x)
        with torch.enable_grad():  # the caller of scores may not want gradients
            pixels = x if x.requires_grad else x.detach().requires_grad_()
            logits = near = classifier(pixels.clone())
            for _ in range(self.steps):
                doubt = F.cross_entropy(near.double(), logits.argmax(1), reduction="sum")  # float32 would round it to 0
                moved = moved + self.size * torch.autograd.grad(doubt, pixels, retain_graph=True)[0].sign()
                moved = ((x + moved.clamp(-self.radius, self.radius)).clamp(0, 1) - x).detach()
                near = classifier(pixels + moved)
        return (logits, near) if torch.is_grad_enabled() else (logits.detach(), near.detach())


class SummedLogProbabilities(Unanimity):
    """A classifier and CLIP as one model: the class must lead in the sum of both models' log-probabilities.

    The factor `scale` of CLIP's cosines makes both models equally sure; `threshold` is the required margin, >= 0.
    """

    components = ("the sum",)

    def __init__(self, classifier: nn.Module, alignment: nn.Module, scale: float, threshold: float):
        super().__init__([classifier, alignment])
        self.scale, self.threshold = scale, threshold

    def margins(self, scores: tuple[Tensor, Tensor]) -> Tensor:
        total = scores[0].log_softmax(1) + (self.scale * scores[1]).log_softmax(1)
        return (margin_over_others(total) - self.threshold).unsqueeze(1)


class Drawn(Defence):
    """A random defence as its attacker sees it: in every call so many new draws of its answer to each image.

    The margins are means over the draws, and so are their gradients (Athalye et al. 2018). The outputs accept a class
    that every draw accepts. The seed names the random numbers of torch; those of the caller are left alone.
    """

    def __init__(self, defence: nn.Module, draws: int, seed: int):
        super().__init__()
        self.defence, self.draws, self.seed, self.calls = defence, draws, seed % 2**31, 0

    def scores(self, x: Tensor) -> tuple[Tensor, ...]:
        """The scores of all draws, (B,draws,...)."""
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            torch.manual_seed((self.seed << 32) + self.calls)
            self.calls += 1
            scores = zip(*(self.defence.scores(x.clone()) for _ in range(self.draws)), strict=True)
            return tuple(torch.stack(draws, 1) for draws in scores)

    def _of_each_draw(self, rule: Callable, scores: tuple[Tensor, ...]) -> Tensor:
        return rule(tuple(score.flatten(0, 1) for score in scores)).unflatten(0, (-1, self.draws))

    def margins(self, scores: tuple[Tensor, ...]) -> Tensor:
        return self._of_each_draw(self.defence.margins, scores).mean(1)

    def shares(self, scores: tuple[Tensor, ...]) -> Tensor:
        """The share of draws that decide for each class, and for "reject", (B,K+1)."""
        outputs = self._of_each_draw(self.defence.outputs, scores)
        return F.one_hot(outputs.argmax(2), outputs.shape[2]).double().mean(1)

    def outputs(self, scores: tuple[Tensor, ...]) -> Tensor:
        """The shares of the classes; "reject" has less than all draws, and more than all but one."""
        return F.pad(self.shares(scores)[:, :-1], (0, 1), value=1 - 0.5 / self.draws)


def reduced_bits(x: Tensor, bits: int = 4) -> Tensor:
    """Pixels of few bits. The gradient is the identity's (BPDA, Athalye et al. 2018): rounding has none."""
    levels = 2**bits - 1
    return x + ((x * levels).round() / levels - x).detach()


def calibrate(
    build: Callable[[float], nn.Module], images: Tensor, rejection: float, low: float = 0.0, high: float = 1.0
) -> nn.Module:
    """The defence that rejects a new clean image with a probability of at most `rejection`, in [0,1).

    It is split conformal prediction (Vovk 2012): the threshold is the k-th smallest score of the n images, where k =
    floor(rejection * (n + 1)). The clean rejection has the distribution Beta(k, n + 1 - k), if no scores are equal.
    Where k is 0, the threshold is `low`, and nothing is guaranteed. The images (N,C,H,W) are clean, float32 in [0,1] or
    uint8, like those to come, none of them trained on or evaluated. `build` takes a threshold to a defence; a larger
    one rejects more, and the scores may not depend on it. The search moves up where `high` rejects too little. Raises
    ValueError for numbers out of range, images that are no pixels, and a `low` that rejects too much.
    """
    if not 0 <= rejection < 1 or not low < high or not len(images):
        given = f"rejection is {rejection}, low {low}, high {high}, the number of images {len(images)}"
        raise ValueError(f"{given}; give 0 <= rejection < 1, low < high, and an image")
    with own_settings(defence := build(low)):
        scores = scores_of(defence, pixels_of(images))
    allowed = math.floor(rejection * (len(images) + 1)) - 1  # images below the k-th smallest score

    def rejected(threshold: float) -> int:
        outputs = build(threshold).outputs(scores)
        return int((outputs.argmax(1) == outputs.shape[1] - 1).sum())

    if rejected(low) > max(allowed, 0):
        raise ValueError(f"the threshold {low} rejects {rejected(low)} of {len(images)} images already; lower `low`")
    while rejected(high) <= allowed and high < 1e9:
        low, high = high, high + 2 * (high - low)
    for _ in range(60 if allowed >= 0 else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) <= allowed else (low, middle)
    return build(low)
