"""A defence whose gradient is masked, and what the sanity rules say about it.

    python examples/masked.py

The pixels are rounded to eight levels: small steps change nothing, so white-box attacks see a gradient of zero. No
attack breaks an image, not even at a radius at which any image can be made grey. So that rule is violated: the attacks
are blind, and the robust accuracy of 100 % means nothing.
"""

from own import images_and_labels, neighbours
from torch import nn

from multishield import ConfidenceThreshold, evaluate


class Rounded(nn.Module):
    """A classifier of rounded pixels."""

    def __init__(self, classifier, levels: int):
        super().__init__()
        self.classifier, self.levels = classifier, levels

    def forward(self, x):
        return self.classifier((x * self.levels).round() / self.levels)


if __name__ == "__main__":
    defence = ConfidenceThreshold(Rounded(neighbours(classes=2), levels=7), threshold=0.0)
    result = evaluate(defence, *images_and_labels("test", 40), eps=16 / 255)
    print(result)
    violated = result.findings[~result.findings.holds]
    print("\nViolated rules:", ", ".join(violated.rule) or "none", "| notes:", "; ".join(result.notes) or "none")
