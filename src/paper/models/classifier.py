"""Classifiers: (B,3,H,W) pixels in [0,1] to logits (B,K), normalisation and resizing inside."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from multishield.errors import UserError
from multishield.files import load_tensors, save_tensors, write_json
from multishield.forward import REPEATABLE, device, freeze, outputs
from paper import paths
from paper.models import pretrained
from paper.models.cifar_resnet import load_exactly
from paper.params.sections import Classifiers
from paper.params.values import stored


class Classifier(nn.Module):
    """A network with its normalisation: pixels in [0,1] (B,3,H,W) to logits (B,K).

    `mean` and `std` are three numbers each. Images whose side is not `size` are resized bilinearly; None resizes none.
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


def save_classifier(classifier: Classifier, params: Classifiers, classes: int, folder: Path) -> None:
    """Write the files that `load_classifier` reads; `params` describes the classifier, and `classes` is K."""
    save_tensors(folder / "weights.safetensors", classifier.network.state_dict())
    made_by = params.model_dump(include={"source", "architecture", "name", "model", "factory"})
    record = {"architecture": made_by, "classes": classes}
    record |= {name: getattr(classifier, name).flatten().tolist() for name in ("mean", "std")}
    write_json(folder / "classifier.json", record | {"size": classifier.size})


def load_classifier(name: str, fold: bool = True) -> Classifier:
    """A classifier of the training stage, frozen, on the best device. It needs no network: its weights are there."""
    folder = paths.artifacts("training", name)
    numbers, kinds = {"mean": list[float], "std": list[float]}, {"architecture": dict, "size": int | None}
    record = stored(folder / "classifier.json", classes=int, **kinds, **numbers)
    network = pretrained.build(record.architecture, record.classes)
    load_exactly(network, load_tensors(folder / "weights.safetensors"), str(folder))
    if fold and record.architecture["source"] == "train":
        network = fuse(network.eval())
    return freeze(Classifier(network, record.mean, record.std, record.size)).to(device())


def check_stored(made: nn.Module, loaded: nn.Module, pixels: Tensor, key: str) -> None:
    """Raises UserError if a model answers otherwise on pixels (B,3,H,W) once its files were written and read."""
    before, after = outputs(made, pixels), outputs(loaded, pixels)
    change = float((before - after).abs().max() / before.abs().max().clamp_min(1e-12))
    if change > REPEATABLE:
        given = f"{key} answers otherwise once it was stored and loaded: scores change by {100 * change:.2g} %"
        raise UserError(f"{given}; let its state dict hold every part of it that is drawn at random")
