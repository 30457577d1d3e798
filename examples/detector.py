"""An own detector in front of a classifier: what is to be written, and what it is worth.

    python examples/detector.py

The detector rejects images whose high frequencies are too strong, an old idea: perturbations often are. It is written
as a margin, so that the attack sees it: the classifier must be fooled by an image that is still smooth.
"""

import torch
from own import neighbours
from reject_class import load
from torch.nn import functional as F

from multishield import Defence, calibrate, evaluate
from multishield.shield import lead


class Smooth(Defence):
    """A classifier that rejects what changes too much from a pixel to the next but one.

    Args:
        limit: of the mean square difference between an image and its average over 3 x 3 pixels, times 1,000.
    """

    parts = ("the classifier", "the detector")

    def __init__(self, classifier, limit: float):
        super().__init__()
        self.classifier, self.limit = classifier, limit

    def scores(self, x):
        rough = (x - F.avg_pool2d(x, 3, stride=1, padding=1)).square().mean((1, 2, 3))
        return self.classifier(x), 1000 * rough

    def margins(self, scores):
        logits, rough = scores
        # The detector says the same of every class: one number per image, repeated K times.
        return torch.stack([lead(logits), (self.limit - rough)[:, None].expand_as(logits)], 1)


if __name__ == "__main__":
    classifier = neighbours(classes=2)
    validation, _ = load("train")
    # `calibrate` wants a threshold that rejects more as it grows: here that is the negative limit.
    defence = calibrate(lambda t: Smooth(classifier, -t), validation, rejection=0.05, low=-20.0, high=0.0)
    images, labels = load("test")
    print(evaluate(defence, images[:50], labels[:50], eps=8 / 255))
