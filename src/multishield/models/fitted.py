"""A network with what belongs to it, as every source of classifiers returns it."""

from dataclasses import dataclass

from torch import nn

from multishield.storage import paths
from multishield.storage.errors import UserError

# Networks that normalise inside take pixels as they are.
PLAIN = ([0.0] * 3, [1.0] * 3)


@dataclass(frozen=True)
class Fitted:
    """A network, the normalisation it was trained with, and the side of the images it was made for (None: any)."""

    network: nn.Module
    mean: list[float]
    std: list[float]
    size: int | None


def same_classes(key: str, what: str, outputs: int, classes: int) -> None:
    if outputs != classes:
        raise UserError(
            f"{key} is {what}, which tells {outputs} classes apart, but the data set has {classes}; choose a "
            "classifier of that data set, or `source: finetune`, which gives a torchvision model a new head"
        )


def is_weights_file(weights: str) -> bool:
    return weights.endswith(".safetensors") or paths.resolve(weights).is_file()


def reason_of(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
