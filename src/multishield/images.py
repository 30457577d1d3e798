"""Images with labels, images after an attack, and attacked images on disk or in memory."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from multishield.files import load_tensors, missing, save_tensors
from multishield.shield import check_pixels

# Bytes of a chunk of images as float32: 44,000 images of 32 pixels, 890 of 224. Memory holds copies of one chunk.
CHUNK = 2**29


def in_unit_range(images: Tensor) -> Tensor:
    """Bytes as float32 in [0,1]; floating point as it is."""
    return images.float() / 255 if getattr(images, "dtype", None) == torch.uint8 else images


def pixels_of(images: Tensor, bounds: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Images of a user within the bounds (low, high), the bytes 0 and 255. Raises ValueError if they are no pixels."""
    pixels, (low, high) = in_unit_range(images), bounds
    if pixels is not images:
        pixels = (low + (high - low) * pixels).clamp(low, high)
    check_pixels(pixels, bounds)
    return pixels


@dataclass(frozen=True)
class Images:
    """Images (N,C,H,W) or (N,D), uint8 or float32; labels int64 (N,); ids int64 (N,), which name an image for good."""

    images: Tensor
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> "Images":
        return Images(self.images[index], self.labels[index], self.ids[index])

    @property
    def pixels(self) -> Tensor:
        """Images as float32: bytes are divided by 255."""
        return in_unit_range(self.images)

    def chunks(self, multiple: int = 1) -> Iterator[slice]:
        """Consecutive slices of at most `CHUNK` bytes; each but the last has a multiple of so many images."""
        size = max(1, CHUNK // self[:1].pixels.nbytes // multiple) * multiple
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def save(self, path: Path) -> Path:
        """Write a safetensors file."""
        return save_tensors(path, vars(self))

    @classmethod
    def load(cls, path: Path) -> "Images":
        """Read the file that `save` has written."""
        return cls(**load_tensors(path))


@dataclass(frozen=True)
class AttackedImages:
    """Images (N,C,H,W) or (N,D) after an attack, float32, and its effect on each; the clean image where it failed.

    `broken_by` names per image the attack that broke it: "clean" where it was wrong before, "" where it resisted.
    `forwards` and `backwards` are the passes through the model that each image cost, int64 (N,).
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
        changed = dict(zip(index.tolist(), newer.broken_by, strict=True))
        names = [changed.get(i, name) for i, name in enumerate(self.broken_by)]
        forwards = self.forwards.index_add(0, index, newer.forwards)
        backwards = self.backwards.index_add(0, index, newer.backwards)
        return AttackedImages(self.images.index_copy(0, index, newer.images), names, forwards, backwards)

    @classmethod
    def joined(cls, chunks: list["AttackedImages"]) -> "AttackedImages":
        """Several chunks, one after the other."""
        images, names, forwards, backwards = zip(*(vars(c).values() for c in chunks), strict=True)
        return cls(torch.cat(images), [*chain(*names)], torch.cat(forwards), torch.cat(backwards))

    def tensors(self) -> dict[str, Tensor]:
        """As named tensors; `broken_by` is a text of one line per image, in UTF-8."""
        names = torch.tensor(list("\n".join(self.broken_by).encode()), dtype=torch.uint8)
        return vars(self) | {"broken_by": names}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "AttackedImages":
        """The inverse of `tensors`."""
        names = bytes(tensors["broken_by"].tolist()).decode().split("\n")
        return cls(tensors["images"], names, tensors["forwards"], tensors["backwards"])


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
        first, last, _ = wanted.indices(sys.maxsize)
        read = []
        for (start, chunk), end in zip(chunks.items(), [*chunks, sys.maxsize][1:], strict=True):
            if start < last and end > first:
                images = AttackedImages.from_tensors(load_tensors(chunk)) if self.folder else chunk
                read.append(images[max(first - start, 0) : last - start])
        return AttackedImages.joined(read)


def folder_of(folder: Path, attack: str) -> Path:
    """The folder of an attack's images below the folder of an evaluation: "on CLIP" lies in on-CLIP."""
    return folder / attack.replace(",", "").replace(" ", "-")
