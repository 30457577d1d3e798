"""Threshold a score of your own: here the energy of the logits (Liu et al. 2020), or their entropy.

    python examples/energy.py

A margin must be >= 0 where the score accepts the image. It does not depend on the class, so it is repeated K times.
"""

import torch
from own import images_and_labels, neighbours

from multishield import Defence, calibrate, evaluate
from multishield.shield import margin_over_others


class Energy(Defence):
    """A classifier that rejects images whose energy score, logsumexp of the logits, lies below a threshold."""

    def __init__(self, classifier, threshold: float):
        super().__init__()
        self.classifier, self.threshold = classifier, threshold

    def scores(self, x):
        return (self.classifier(x),)

    def score(self, logits):
        return logits.logsumexp(1)  # for the entropy: (logits.softmax(1) * logits.log_softmax(1)).sum(1)

    def margins(self, scores):
        (logits,) = scores
        sure = (self.score(logits) - self.threshold)[:, None].expand_as(logits)
        return torch.stack([margin_over_others(logits), sure], 1)


if __name__ == "__main__":
    classifier = neighbours(classes=2)
    validation, _ = images_and_labels("train", 200)
    defence = calibrate(lambda t: Energy(classifier, t), validation, rejection=0.05, low=0.0, high=20.0)
    print(evaluate(defence, *images_and_labels("test", 50), eps="32/255"))
