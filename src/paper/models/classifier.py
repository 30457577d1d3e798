"""Classifiers: (B,3,H,W) pixels in [0,1] to logits (B,K), normalisation and resizing inside."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from multishield.files import load_tensors, read_json, save_tensors, write_json
from multishield.forward import device, freeze
from paper import paths
from paper.models import pretrained
from paper.models.cifar_resnet import load_exactly
from paper.params.sections import Classifiers


class Classifier(nn.Module):
    """A network with its normalisation: pixels in [0,1] (B,3,H,W) to logits (B,K).

    `mean` and `std` are three numbers each, in units of [0,1] pixels. Images whose side is not `size` are resized,
    bilinearly and differentiably; None takes images of any size.
    """

    def __init__(self, network: nn.Module, mean: list[float], std: list[float], size: int | None = None):
        super().__init__()
        # Weights may be stored in half precision, but pixels are float32. Convolutions are fastest in this layout.
        self.network, self.size = network.float().to(memory_format=torch.channels_last), size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.size and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        return self.network((x - self.mean) / self.std)


def folded(network: nn.Module) -> nn.Module:
    """A network that was trained here, its batch norms folded into convolutions: equal up to rounding, and faster."""
    return fuse(network.eval()) if any(isinstance(m, nn.BatchNorm2d) for m in network.modules()) else network


def save_classifier(classifier: Classifier, params: Classifiers, classes: int, folder: Path) -> None:
    """Write the files that `load_classifier` reads; `params` describes the classifier, and `classes` is K."""
    save_tensors(folder / "weights.safetensors", classifier.network.state_dict())
    made_by = params.model_dump(include={"source", "architecture", "name", "model", "factory"})
    record = {"architecture": made_by, "classes": classes}
    record |= {name: getattr(classifier, name).flatten().tolist() for name in ("mean", "std")}
    write_json(folder / "classifier.json", record | {"size": classifier.size})


def load_classifier(name: str) -> Classifier:
    """A classifier of the training stage, frozen, on the best device. It needs no network: its weights are there."""
    folder = paths.artifacts("training", name)
    record = read_json(folder / "classifier.json")
    network = pretrained.build(record["architecture"], record["classes"])
    load_exactly(network, load_tensors(folder / "weights.safetensors"), str(folder))
    network = folded(network) if record["architecture"]["source"] == "train" else network
    return freeze(Classifier(network, record["mean"], record["std"], record["size"])).to(device())
