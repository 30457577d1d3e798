"""Images with labels and ids, and images after an attack."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from multishield.tensors import load_tensors, save_tensors


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


@dataclass(frozen=True)
class AttackedImages:
    """Images after an attack, and what it did to each.

    Attributes:
        images: (N,3,H,W) float32 in [0,1]. Where the attack failed it is the clean image.
        broken_by: per image the attack that broke it, "clean" where it was wrong before, "" where nothing broke it.
        forwards, backwards: passes through the model that each image cost, int64 (N,).
    """

    images: Tensor
    broken_by: list[str]
    forwards: Tensor
    backwards: Tensor

    @property
    def success(self) -> Tensor:
        """Which images are broken, bool (N,)."""
        return torch.tensor([bool(name) for name in self.broken_by], dtype=torch.bool)

    def __getitem__(self, index: Tensor | slice) -> "AttackedImages":
        """The images of int64 indices, or of a slice: those are no copy."""
        names = self.broken_by[index] if isinstance(index, slice) else [self.broken_by[i] for i in index.tolist()]
        return AttackedImages(self.images[index], names, self.forwards[index], self.backwards[index])

    def tensors(self) -> dict[str, Tensor]:
        """As named tensors: names are numbered, and their text is a row of bytes."""
        names = sorted(set(self.broken_by))
        return {
            "images": self.images,
            "attack": torch.tensor([names.index(name) for name in self.broken_by], dtype=torch.long),
            "attack_names": torch.tensor(list("\n".join(names).encode()), dtype=torch.uint8),
            "forwards": self.forwards,
            "backwards": self.backwards,
        }

    @classmethod
    def of_tensors(cls, t: dict[str, Tensor]) -> "AttackedImages":
        """From what `tensors` returned."""
        names = bytes(t["attack_names"].tolist()).decode().split("\n")
        return cls(t["images"], [names[i] for i in t["attack"].tolist()], t["forwards"], t["backwards"])

    @classmethod
    def joined(cls, parts: list["AttackedImages"]) -> "AttackedImages":
        """One after the other."""
        columns = (torch.cat([getattr(p, name) for p in parts]) for name in ("images", "forwards", "backwards"))
        images, forwards, backwards = columns
        return cls(images, [name for p in parts for name in p.broken_by], forwards, backwards)

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_tensors(path, self.tensors())

    @classmethod
    def load(cls, path: Path) -> "AttackedImages":
        """Read what `save` has written."""
        return cls.of_tensors(load_tensors(path))
