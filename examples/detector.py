"""Write a detector in front of a classifier, and measure its robustness.

    python examples/detector.py

The detector rejects images with strong high frequencies, which perturbations often have. It is written as a margin, so
the attack sees it: a successful image must fool the classifier and still be smooth.
"""

import torch
from own import images_and_labels, neighbours
from torch.nn import functional as F

from multishield import Defence, calibrate, evaluate
from multishield.shield import margin_over_others


class Smooth(Defence):
    """A classifier that rejects images whose mean square difference from their 3 x 3 average, times 1,000, is large."""

    components = ("the classifier", "the detector")

    def __init__(self, classifier, limit: float):
        super().__init__()
        self.classifier, self.limit = classifier, limit

    def scores(self, x):
        rough = (x - F.avg_pool2d(x, 3, stride=1, padding=1)).square().mean((1, 2, 3))
        return self.classifier(x), 1000 * rough

    def margins(self, scores):
        logits, rough = scores
        return torch.stack([margin_over_others(logits), (self.limit - rough)[:, None].expand_as(logits)], 1)


if __name__ == "__main__":
    classifier = neighbours(classes=2)
    validation, _ = images_and_labels("train", 200)
    # `calibrate` wants a threshold that rejects more as it grows: here that is the negative limit.
    defence = calibrate(lambda t: Smooth(classifier, -t), validation, rejection=0.05, low=-20.0, high=0.0)
    print(evaluate(defence, *images_and_labels("test", 50), eps=8 / 255))
