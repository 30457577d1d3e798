"""Classifiers: (B,3,H,W) pixels in [0,1] to logits (B,K), normalisation inside.

CIFAR ResNets: He et al. 2016, section 4.2, parameter-free shortcuts (option A). ResNet-18 for 32x32: torchvision's
with a 3x3 stem and no max-pooling.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from multishield import paths
from multishield.errors import UserError
from multishield.files import load_tensors, read_json, save_tensors, write_json

# What a model returns for a batch: a tensor (B,C), or a tuple of them (a shield's logits and cosines).
Outputs = Tensor | tuple[Tensor, ...]
# Below this, CPU kernels for small batches sum in another order, and the last bits of a result would depend on how many
# images are in the batch (tests/test_engine.py). Smaller batches are filled up with repeats.
SMALLEST = 16


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters: strided, new channels filled with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        # Channels are new exactly where the stride is 2.
        self.stride, self.new = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        short = x
        if self.new:
            short = x[:, :, :: self.stride, :: self.stride]
            short = F.pad(short, (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))
        return F.relu(out + short, inplace=True)


class CifarResNet(nn.Module):
    """ResNet of depth 6n+2 for small images: three stages of n blocks with 16, 32, 64 channels."""

    def __init__(self, depth: int, classes: int):
        super().__init__()
        blocks, widths = (depth - 2) // 6, (16, 16, 32, 64)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage in (1, 2, 3):
            first = Block(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)
            rest = [Block(widths[stage], widths[stage], 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


class Classifier(nn.Module):
    """A network with its normalisation: pixels in [0,1] (B,3,H,W) to logits (B,K)."""

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        # The layout that CPUs and GPUs convolve fastest in.
        self.network = network.to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)


def build_network(architecture: str, classes: int) -> nn.Module:
    """A network by name (see `params.ARCHITECTURES`) with random weights."""
    if architecture == "resnet18":
        network = torchvision.models.resnet18(num_classes=classes)
        network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        network.maxpool = nn.Identity()
        return network
    return CifarResNet(int(architecture.removeprefix("resnet")), classes)


def load_exactly(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load a state dict whose keys and shapes must match exactly: nothing is left at random.

    Raises:
        UserError: naming what is missing, extra or of another shape.
    """
    own = module.state_dict()
    # Counters of batch norm that old checkpoints lack: they have no influence on inference.
    missing = sorted(k for k in own.keys() - weights.keys() if not k.endswith("num_batches_tracked"))
    extra = sorted(weights.keys() - own.keys())
    if missing or extra:
        raise UserError(
            f"{source} does not fit the architecture: {len(missing)} keys are missing (such as "
            f"{missing[:2]}), {len(extra)} are extra (such as {extra[:2]}); name the architecture it was made for"
        )
    for key in sorted(own.keys() & weights.keys()):
        if own[key].shape != weights[key].shape:
            raise UserError(
                f"{source} does not fit: {key} has shape {tuple(weights[key].shape)}, expected "
                f"{tuple(own[key].shape)}; the architecture or the number of classes differs"
            )
    module.load_state_dict(weights, strict=False)


def freeze(module: nn.Module) -> nn.Module:
    """Evaluation mode, no gradients for parameters: gradients go to the pixels only."""
    return module.eval().requires_grad_(False)


def save_classifier(classifier: Classifier, architecture: str, classes: int, folder: Path) -> None:
    """Write `weights.safetensors` and the `classifier.json` that `load_classifier` needs."""
    save_tensors(folder / "weights.safetensors", classifier.network.state_dict())
    mean, std = (getattr(classifier, name).flatten().tolist() for name in ("mean", "std"))
    write_json(folder / "classifier.json", {"architecture": architecture, "classes": classes, "mean": mean, "std": std})


def load_classifier(name: str) -> Classifier:
    """A classifier of the training stage, frozen, on the best device."""
    folder = paths.artifacts("training", name)
    return read_classifier(folder / "weights.safetensors", **read_json(folder / "classifier.json"))


def read_classifier(weights: Path, architecture: str, classes: int, mean: list[float], std: list[float]) -> Classifier:
    """Build a classifier from a safetensors state dict, frozen, on the best device.

    Args:
        weights: the file; its keys must be exactly the architecture's.
        architecture: a name of `params.ARCHITECTURES`.
        classes: K.
        mean, std: the normalisation it was trained with, three numbers each, in units of [0,1] pixels.

    Raises:
        UserError: the file is missing, is a pickle, or does not fit.
    """
    network = build_network(architecture, classes)
    load_exactly(network, load_tensors(weights), str(weights))
    return freeze(Classifier(network, mean, std)).to(device())


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def forward(model: Callable[[Tensor], Outputs], x: Tensor) -> Outputs:
    """The model's outputs for a batch of images: an image has the same bytes whatever else is in the batch."""
    if len(x) >= SMALLEST:
        return model(x)
    out = model(x[torch.arange(SMALLEST, device=x.device) % len(x)])
    return tuple(t[: len(x)] for t in out) if isinstance(out, tuple) else out[: len(x)]


@torch.no_grad()
def outputs(model: nn.Module, pixels: Tensor, batch_size: int = 256) -> Tensor:
    """The model's outputs for all images, on the CPU, computed in batches."""
    where = device()
    return torch.cat([forward(model, x.to(where)).cpu() for x in pixels.split(batch_size)])


def accuracy(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """The fraction of images whose largest output is the label's."""
    return (outputs(model, pixels).argmax(1) == labels).float().mean().item()
