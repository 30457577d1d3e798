"""Images with labels, images after an attack, and attacked images on disk or in memory."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from multishield.files import load_tensors, missing, save_tensors

# Bytes of a chunk of images as float32: 44,000 images of 32 pixels, 890 of 224. Memory holds copies of one chunk.
CHUNK = 2**29


@dataclass(frozen=True)
class Images:
    """Images uint8 (N,C,H,W), or float32 in [0,1]; labels int64 (N,); ids int64 (N,), which name an image for good."""

    images: Tensor
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> "Images":
        return Images(self.images[index], self.labels[index], self.ids[index])

    @property
    def pixels(self) -> Tensor:
        """Images as float32 in [0,1]."""
        return self.images if self.images.is_floating_point() else self.images.float() / 255

    def chunks(self, multiple: int = 1) -> Iterator[slice]:
        """Consecutive slices of at most `CHUNK` bytes; each but the last has a multiple of so many images."""
        size = max(1, CHUNK // self[:1].pixels.nbytes // multiple) * multiple
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def save(self, path: Path) -> Path:
        """Write a safetensors file."""
        return save_tensors(path, {"images": self.images, "labels": self.labels, "ids": self.ids})

    @classmethod
    def load(cls, path: Path) -> "Images":
        """Read the file that `save` has written."""
        return cls(**load_tensors(path))


@dataclass(frozen=True)
class AttackedImages:
    """Images after an attack, and its effect on each.

    Attributes:
        images: (N,C,H,W) float32 in [0,1]. Where the attack failed it is the clean image.
        broken_by: per image the attack that broke it, "clean" where it was wrong before, "" where it resisted.
        forwards, backwards: passes through the model that each image cost, int64 (N,).
    """

    images: Tensor
    broken_by: list[str]
    forwards: Tensor
    backwards: Tensor

    @classmethod
    def untouched(cls, data: Images) -> "AttackedImages":
        """Images before any attack."""
        none = torch.zeros(len(data), dtype=torch.long)
        return cls(data.pixels.clone(), [""] * len(data), none, none)

    @property
    def success(self) -> Tensor:
        """Which images are broken, bool (N,)."""
        return torch.tensor([bool(name) for name in self.broken_by], dtype=torch.bool)

    def __getitem__(self, index: Tensor | slice) -> "AttackedImages":
        """The images of int64 indices, or of a slice; a slice copies nothing."""
        names = self.broken_by[index] if isinstance(index, slice) else [self.broken_by[i] for i in index.tolist()]
        return AttackedImages(self.images[index], names, self.forwards[index], self.backwards[index])

    def updated(self, index: Tensor, newer: "AttackedImages") -> "AttackedImages":
        """The same, with newer images at some indices; passes add up."""
        names = list(self.broken_by)
        for i, name in zip(index.tolist(), newer.broken_by, strict=True):
            names[i] = name
        passes = (getattr(self, kind).index_add(0, index, getattr(newer, kind)) for kind in ("forwards", "backwards"))
        return AttackedImages(self.images.index_copy(0, index, newer.images), names, *passes)

    @classmethod
    def joined(cls, chunks: list["AttackedImages"]) -> "AttackedImages":
        """Several chunks, one after the other."""
        columns = (torch.cat([getattr(c, name) for c in chunks]) for name in ("images", "forwards", "backwards"))
        images, forwards, backwards = columns
        return cls(images, [name for c in chunks for name in c.broken_by], forwards, backwards)

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
    def from_tensors(cls, t: dict[str, Tensor]) -> "AttackedImages":
        """The inverse of `tensors`."""
        names = bytes(t["attack_names"].tolist()).decode().split("\n")
        return cls(t["images"], [names[i] for i in t["attack"].tolist()], t["forwards"], t["backwards"])


class StoredImages:
    """Attacked images in chunks: in a folder, a file per chunk named by the number of its first image; or in memory.

    `stored[a:b]` reads the images a to b as `AttackedImages`, across chunks; `stored[:]` reads all of them.
    """

    def __init__(self, folder: Path | None = None):
        self.folder, self.memory = folder, {}

    def add(self, start: int, attacked: AttackedImages) -> None:
        """Store the images from `start` on. A chunk at 0 begins anew: the files of an earlier call are removed."""
        if not self.folder:
            self.memory[start] = attacked
            return
        for old in self.folder.glob("*.safetensors") if start == 0 else ():
            old.unlink()
        save_tensors(self.folder / f"{start:08d}.safetensors", attacked.tensors())

    def __getitem__(self, wanted: slice) -> AttackedImages:
        """Raises UserError if the folder holds none."""
        chunks = self.memory or {int(file.stem): file for file in sorted(self.folder.glob("*.safetensors"))}
        if not chunks:
            raise missing(self.folder / "00000000.safetensors", "a .safetensors file")
        first, last = wanted.start or 0, sys.maxsize if wanted.stop is None else wanted.stop
        parts = []
        for (start, chunk), end in zip(chunks.items(), [*chunks, sys.maxsize][1:], strict=True):
            if start < last and end > first:
                loaded = AttackedImages.from_tensors(load_tensors(chunk)) if self.folder else chunk
                parts.append(loaded[max(first - start, 0) : last - start])
        return AttackedImages.joined(parts)


def folder_of(folder: Path, attack: str) -> Path:
    """The folder of an attack's images below the folder of an evaluation: "on CLIP" lies in on-CLIP."""
    return folder / attack.replace(",", "").replace(" ", "-")
