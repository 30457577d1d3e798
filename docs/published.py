"""Published classifiers on real CIFAR-10 test images: clean accuracy, and robust accuracy under apgd-ce at 8/255.

Needs MULTISHIELD_CIFAR10 and MULTISHIELD_WEIGHTS (profiles/cifar10-published.yaml says what they name):

    python docs/published.py
"""

import os
from pathlib import Path

import torch

from multishield import records
from multishield.attacks.apgd import apgd
from multishield.forward import accuracy, freeze
from paper.data import prepare
from paper.data.folders import open_folder
from paper.models import pretrained
from paper.models.classifier import read_classifier, wrap
from paper.params import Catalogued

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SHIPPED = "AutoAttack-ResNet18"


def networks(weights: Path) -> dict:
    """The classifiers by name."""
    found = {
        n: read_classifier(weights / f"cifar10_{n}.safetensors", n, 10, MEAN, STD) for n in ("resnet20", "resnet56")
    }
    entry = Catalogued(source="catalogue", name=SHIPPED)
    return found | {SHIPPED: freeze(wrap(pretrained.load(entry, 10, f"training.{SHIPPED}")))}


def share(count: int, n: int) -> str:
    """Per cent with a 95 % Wilson interval."""
    low, high = records.wilson(count, n)
    return f"{100 * count / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    source = open_folder(Path(os.environ["MULTISHIELD_CIFAR10"]), "test")
    data = prepare.read_split(source, torch.arange(len(source)), 32)
    print("| classifier | clean accuracy | robust under apgd-ce | N |\n|---|---:|---:|---:|")
    for name, model in networks(Path(os.environ["MULTISHIELD_WEIGHTS"])).items():
        right = round(accuracy(model, data) * len(data))
        found = apgd(model, data.pixels, data.labels, eps=8 / 255, seed=0, ids=data.ids, steps=100)
        resist = int((~found.success).sum())
        print(f"| {name} | {share(right, len(data))} | {share(resist, len(data))} | {len(data)} |", flush=True)


if __name__ == "__main__":
    main()
