"""Prepared splits, as every stage reads them: safetensors in artifacts/dataset/."""

from dataclasses import dataclass
from pathlib import Path

import torch

from multishield.storage import paths
from multishield.storage.errors import UserError
from multishield.storage.files import mend, read_json
from multishield.storage.tensors import load_tensors, save_tensors


@dataclass(frozen=True)
class Split:
    """Images uint8 (N,3,S,S), or float32 in [0,1]; labels int64 (N,); ids int64 (N,), which name an image for good."""

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> "Split":
        return Split(self.images[index], self.labels[index], self.ids[index])

    @property
    def pixels(self) -> torch.Tensor:
        """Images as float32 in [0,1]."""
        return self.images if self.images.is_floating_point() else self.images.float() / 255

    def save(self, path: Path) -> Path:
        return save_tensors(path, {"images": self.images, "labels": self.labels, "ids": self.ids})

    @classmethod
    def load(cls, path: Path) -> "Split":
        return cls(**load_tensors(path))


def load_split(name: str) -> Split:
    """A prepared split: "train", "validation" or "evaluation"."""
    return Split.load(paths.artifacts("dataset", f"{name}.safetensors"))


def load_classes() -> list[str]:
    """The class names, in the order of the labels."""
    file = paths.artifacts("dataset", "classes.json")
    names = read_json(file)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file} is no list of names; {mend(file, '')}")
    return names


def load_captions() -> list[str] | None:
    """The captions of the prepared training images, where the data set has them."""
    return read_json(paths.artifacts("dataset", "captions.json"))
