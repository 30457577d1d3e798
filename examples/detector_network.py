"""A network that detects suspicious inputs, in front of a classifier of two classes on vectors, not images.

    python examples/detector_network.py

Inputs are (N,D) in a range of their own. Two conditions must hold: the classifier is sure, and the detector is quiet.
"""

import torch
from torch import nn

from multishield import Defence, evaluate
from multishield.shield import margin_over_others


class Guarded(Defence):
    """Two networks: one from vectors to logits of two classes, one to the logit of "suspicious"."""

    components = ("the classifier", "the detector")

    def __init__(self, classifier, detector, margin=0.5):
        super().__init__()
        self.classifier, self.detector, self.margin = classifier, detector, margin

    def scores(self, x):
        return self.classifier(x), self.detector(x)[:, 0]

    def margins(self, scores):
        logits, suspicion = scores
        return torch.stack([margin_over_others(logits) - self.margin, -suspicion[:, None].expand_as(logits)], 1)


if __name__ == "__main__":
    torch.manual_seed(0)
    x = 2 * torch.rand(60, 8) - 1
    detector = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    nn.init.constant_(detector[-1].bias, -0.3)
    defence, y = Guarded(nn.Linear(8, 2), detector), (x.sum(1) > 0).long()
    with torch.no_grad():
        defence.classifier.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 8))
    print(evaluate(defence, x.numpy(), y.numpy(), eps=0.1, bounds=(-1, 1)))
