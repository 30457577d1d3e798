"""A confidence threshold on a model of RobustBench, calibrated to reject 5 % of clean validation images.

    python examples/threshold.py

It needs this repository's environment, and `pip install --no-deps --requirement requirements-robustbench.lock`.
The weights are random, so that it runs without a download; its figures mean nothing. For real ones set `classifier` to
`robustbench.utils.load_model(NAME, threat_model="Linf")`, and use the images of CIFAR-10.
"""

import torch

from multishield import ConfidenceThreshold, calibrate, evaluate
from paper.data.shapes import render_split
from paper.models import model_zoo, robustbench

NAME = "Addepalli2022Efficient_RN18"  # the smallest of them


def images_and_labels(split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rendered shapes in place of CIFAR-10: (N,3,32,32) float32 in [0,1], and labels in 0..9."""
    images, labels, _ = render_split(split, count)
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels)


if __name__ == "__main__":
    torch.manual_seed(0)
    classifier = robustbench.architecture(model_zoo.find("cifar10", NAME)).eval()
    validation, _ = images_and_labels("train", 60)
    defence = calibrate(lambda t: ConfidenceThreshold(classifier, t), validation, rejection=0.05)
    images, labels = images_and_labels("test", 8)
    print(evaluate(defence, images, labels, eps=8 / 255, attacks=["components", "joint", "square"]))
