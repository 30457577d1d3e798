"""Classifiers: (B,3,H,W) pixels in [0,1] to logits (B,K), normalisation and resizing inside."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multishield.files import read_json, write_json
from multishield.forward import device, freeze
from multishield.tensors import load_tensors, save_tensors
from paper import paths
from paper.models import pretrained
from paper.models.cifar_resnet import build_network, load_exactly


class Classifier(nn.Module):
    """A network with its normalisation: pixels in [0,1] (B,3,H,W) to logits (B,K).

    Args:
        mean, std: the normalisation it was trained with, three numbers each, in units of [0,1] pixels.
        size: the side of the images that the network was made for; others are resized, bilinearly and differentiably.
            None takes them as they are.
    """

    def __init__(self, network: nn.Module, mean: list[float], std: list[float], size: int | None = None):
        super().__init__()
        # In float32, whatever the weights are stored as: pixels are. The layout is what is convolved fastest.
        self.network, self.size = network.float().to(memory_format=torch.channels_last), size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.size and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        return self.network((x - self.mean) / self.std)


def wrap(fitted: pretrained.Fitted) -> Classifier:
    """The classifier of a network and what belongs to it."""
    return Classifier(fitted.network, fitted.mean, fitted.std, fitted.size)


def save_classifier(classifier: Classifier, params: pretrained.Described, classes: int, folder: Path) -> None:
    """Write `weights.safetensors` and the `classifier.json` that `load_classifier` needs.

    `params` is the section of params.yaml that it was obtained by, or the description of its architecture.
    """
    save_tensors(folder / "weights.safetensors", classifier.network.state_dict())
    record = {"architecture": pretrained.describe(params), "classes": classes}
    record |= {name: getattr(classifier, name).flatten().tolist() for name in ("mean", "std")}
    write_json(folder / "classifier.json", record | {"size": classifier.size})


def load_classifier(name: str) -> Classifier:
    """A classifier of the training stage, frozen, on the best device. Needs no network: the weights are kept there."""
    folder = paths.artifacts("training", name)
    record = read_json(folder / "classifier.json")
    network = pretrained.architecture(record["architecture"], record["classes"])
    load_exactly(network, load_tensors(folder / "weights.safetensors"), str(folder))
    return freeze(Classifier(network, record["mean"], record["std"], record["size"])).to(device())


def read_classifier(weights: Path, architecture: str, classes: int, mean: list[float], std: list[float]) -> Classifier:
    """Build a classifier from a safetensors state dict, frozen, on the best device.

    Args:
        weights: the file; its keys must be exactly those of `architecture`, a name of `params.ARCHITECTURES`.
        classes: K.
        mean, std: see `Classifier`.

    Raises:
        UserError: the file is missing, is a pickle, or does not fit.
    """
    network = build_network(architecture, classes)
    load_exactly(network, load_tensors(weights), str(weights))
    return freeze(Classifier(network, mean, std)).to(device())
