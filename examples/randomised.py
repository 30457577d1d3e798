"""A defence that is random by design: every pass adds new noise to the image.

    python examples/randomised.py

`draws=20` says so. Gradients are means over 20 draws, 20 new draws decide on an image, and robust accuracy is one minus
the mean share of draws that accept a wrong class. Without `draws` a random model is refused.
"""

import torch
from own import images_and_labels, neighbours
from torch import nn

from multishield import ConfidenceThreshold, evaluate


class Noisy(nn.Module):
    """A classifier that sees the image with Gaussian noise."""

    def __init__(self, classifier, sigma: float):
        super().__init__()
        self.classifier, self.sigma = classifier, sigma

    def forward(self, x):
        return self.classifier(x + self.sigma * torch.randn_like(x))


if __name__ == "__main__":
    defence = ConfidenceThreshold(Noisy(neighbours(classes=2), sigma=0.05), threshold=0.5)
    images, labels = images_and_labels("test", 30)
    result = evaluate(defence, images, labels, eps="32/255", draws=20, attacks=["components", "joint"])
    print(result)
    low, high = result.robust_accuracy.low, result.robust_accuracy.high
    print(f"\nRobust accuracy {float(result.robust_accuracy):.3f}, 95 % interval {low:.3f} to {high:.3f}")
