"""Families of defences: those of one family differ in one threshold, and a larger one rejects more."""

import torch
from torch import Tensor

from multishield import defences
from multishield.attacks.loop import with_gradients
from multishield.attacks.losses import evasion_margin
from multishield.attacks.random_streams import keys
from multishield.attacks.threat_model import Ball
from multishield.defences import Defence
from multishield.forward import device_of, forward, scores_of
from multishield.images import Images
from multishield.shield import MultiShield, margin_over_others
from paper.params.values import FAMILIES

SIGNS = ("flat", "jumps", "rising")  # see `signs_of_failure`


class Family(Defence):
    """Margins of `defence`, less `threshold` times their slopes; `bound`: no class but the classifier's is accepted;
    `of`: which of the shield's scores it has, none where it asks its models itself."""

    def __init__(self, defence: Defence, slopes: tuple = (1.0,), bound: bool = True, of: tuple = ()):
        super().__init__()
        self.defence, self.bound, self.threshold, self.of = defence, bound, 0.0, of
        self.register_buffer("slopes", torch.tensor(slopes)[:, None])

    def scores(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.defence.scores(x)

    def margins(self, scores: tuple[Tensor, ...]) -> Tensor:
        return self.defence.margins(scores) - self.threshold * self.slopes.to(scores[0])

    def levels(self, pixels: Tensor, seen: tuple[Tensor, ...] = ()) -> Tensor:
        """The largest threshold at which each class is accepted, (N,K) or -inf; `seen`: the shield's scores or none."""
        own = tuple(seen[i] for i in self.of) if seen and self.of else scores_of(self, pixels)
        margins, moves = self.defence.margins(own), self.slopes[:, 0] > 0
        levels = (margins[:, moves] / self.slopes[moves]).amin(1)
        levels = levels.masked_fill((margins[:, ~moves] < 0).any(1), -torch.inf)
        return levels.where(levels == levels.amax(1, keepdim=True), -torch.inf)  # one class alone is accepted

    def wrong_level(self, pixels: Tensor, labels: Tensor, seen: tuple[Tensor, ...] = ()) -> Tensor:
        """The largest threshold at which images are accepted as a wrong class, (N,); -inf where at none."""
        return self.levels(pixels, seen).scatter(1, labels[:, None], -torch.inf).amax(1)


def families(shield: MultiShield, pixels: Tensor, cpr: bool) -> dict[str, Family]:
    """Every family by its name, CPR if wanted. Margins are in standard deviations on these images (N,C,H,W)."""
    classifier, clip, scores = shield.classifier, shield.alignment, scores_of(shield, pixels)
    k = scores[0].argmax(1, keepdim=True)
    margins = [margin_over_others(of).gather(1, k)[:, 0].double() for of in scores]
    means, (s, t) = [float(of.mean()) for of in margins], [float(of.std().clamp_min(1e-6)) for of in margins]
    made = (
        Family(defences.ConfidenceThreshold(classifier, 0.0), of=(0,)),
        Family(defences.ConfidenceThreshold(classifier, 0.0, of="probability"), (0.0, 1.0), of=(0,)),
        Family(defences.FeatureSqueezing(classifier), (0.0, 1.0)),
        Family(defences.ConsistentPrediction(classifier, steps=1, size=0.0055), (0.0, 1.0)),
        Family(defences.ConsistentPrediction(classifier), (0.0, 1.0)),  # as published at the threshold 0
        Family(defences.Unanimity((classifier, clip)), (0.0, 1.0), of=(0, 1)),  # its tolerance is minus the threshold
        Family(defences.Unanimity((classifier, classifier, clip), (0.0, *means)), (0.0, s, t), of=(0, 0, 1)),
        Family(defences.ConfidenceThreshold(clip, 0.0), bound=False, of=(1,)),
        Family(defences.SummedLogProbabilities(classifier, clip, s / t, 0.0), bound=False, of=(0, 1)),
    )
    return {name: family for name, family in zip(FAMILIES, made, strict=True) if cpr or name != "CPR"}


def signs_of_failure(family: Family, images: Tensor, data: Images, left: Tensor, ball: Ball, steps: int) -> dict:
    """Indicators of a failed attack of so many steps (Pintor et al. 2022), bool (N,), for the images that are left.

    "flat": the loss has no slope there. "jumps": a little random noise raises it by more than its slope allows.
    "rising": in a tenth of the steps more it rises so fast that as many steps again would break the image.
    """
    signs, more, step = torch.zeros(len(SIGNS), len(images)).bool(), -(-steps // 10), 0.5 / 255
    noisy = Ball(step).random(images, keys(0, "step", data.ids))
    for rows in left.split(128) if len(left) else ():
        x, noise, clean, y = (t[rows].to(device_of(family)) for t in (images, noisy, data.pixels, data.labels))
        losses, slopes = [], []
        for _ in range(more + 1):
            out = forward(family.scores, x.requires_grad_())
            (loss,), (gradient,) = with_gradients(x, lambda out, y=y: (evasion_margin(out, y, family),), out)
            losses, slopes = [*losses, loss.detach()], [*slopes, gradient.abs().flatten(1).sum(1)]
            x = ball.project(x.detach() + ball.eps / 40 * ball.ascent(gradient), clean)  # joint's last step
        rise = evasion_margin(forward(family.scores, noise), y, family) - losses[0]
        rising = losses[0] + (torch.stack(losses).amax(0) - losses[0]) * steps / more >= 0
        jumps = rise > 1.01 * step * slopes[0]  # more than rounding
        signs[:, rows] = torch.stack([slopes[0] == 0, jumps, rising]).cpu()
    return dict(zip(SIGNS, signs, strict=True))
