"""A raw data set: its labels are known at once, and its images are read one by one, so only drawn ones are read."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from multishield.errors import UserError


@dataclass(frozen=True)
class Source:
    """One raw split, "train" or "test".

    Raises UserError if two names differ in capitals alone, a name is empty, or a label is no number or has no name.
    """

    labels: torch.Tensor  # int64 (N,), in 0..K-1; given also as (N,1), as an array or a list
    classes: list[str]  # K distinct names, as words of a prompt
    read: Callable[[int], Image.Image | np.ndarray]  # index to an image of any size and mode: PIL, or uint8 (H,W,3)
    captions: list[str] | None = None  # N sentences, or None
    ids: torch.Tensor | None = None  # int64 (N,), which name an image for good; None: its index is its id

    def __post_init__(self):
        for name in ("labels", "ids") if self.ids is not None else ("labels",):
            object.__setattr__(self, name, _whole_numbers(name, getattr(self, name)))  # the class is frozen
        folded = [name.casefold() for name in self.classes]
        if twice := [name for name in folded if folded.count(name) > 1]:  # CLIP's tokenizers drop capitals
            raise UserError(f"the data set has two classes called {twice[0]!r}, alike for CLIP; give them other names")
        if not all(folded):
            raise UserError("the data set has a class without a name; give every class a name")
        if len(self) and not 0 <= self.labels.min() <= self.labels.max() < len(folded):
            given = f"the data set has labels from {self.labels.min()} to {self.labels.max()}"
            raise UserError(f"{given}; with {len(folded)} classes they must lie in 0..{len(folded) - 1}")

    def __len__(self) -> int:
        return len(self.labels)


def _whole_numbers(name: str, values) -> torch.Tensor:
    """Labels or ids as int64 (N,). Raises UserError if there is not one whole number for each image."""
    array = np.asarray(values)
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        given = f"the data set's {name} have the shape {array.shape} and the type {array.dtype}"
        raise UserError(f"{given}; give one whole number for each image")
    return torch.from_numpy(array.astype(np.int64))


def as_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """An image as RGB; 16 bits, and numbers in [0,1], are scaled. Raises UserError for other levels."""
    if not isinstance(image, Image.Image) or image.mode[0] in "IF":
        levels, grey = np.asarray(image), isinstance(image, Image.Image)  # Pillow has 16 bits as int32, too
        if levels.dtype != np.uint8:
            top = 1 if levels.dtype.kind == "f" else 65535 if grey or levels.dtype == np.uint16 else -1
            if top < 0 or not 0 <= levels.min() <= levels.max() <= top:
                raise UserError(f"its levels, {levels.dtype}, are neither 8 or 16 bits nor in [0,1]; rescale them")
            levels = (np.rint(levels * 255.0) if top == 1 else (levels.astype(np.int64) + 128) // 257).astype(np.uint8)
        image = Image.fromarray(levels)
    return image.convert("RGB")


def read_image(path: str | Path) -> Image.Image:
    """Read one image file as RGB, as a viewer shows it: turned by its EXIF data, transparent pixels white.

    The first of several frames is read. Raises UserError if it is no image file, or `as_rgb` refuses its levels.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file; replace or remove it")
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(path.read_bytes())))
        if image.has_transparency_data and image.mode[0] != "I":
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return as_rgb(image)
    except (OSError, SyntaxError, ValueError, UserError, Image.DecompressionBombError) as error:
        reason = str(error).split("<")[0].strip() or type(error).__name__
        raise UserError(f"{path} cannot be read as an image ({reason}); mend, replace or remove it") from None


def draw(labels: torch.Tensor, count: int, order: str, seed: int) -> torch.Tensor:
    """Sorted indices of `count` images, int64 (count,). The choice uses integers only: it is the same everywhere.

    The order "first" takes the first images. "stratified" takes equally many of each class, at random by `seed`: a
    remainder goes to the first classes, and fewer images than classes are of classes drawn by `seed`.
    """
    if order == "first" or not count:
        return torch.arange(count)
    rng = np.random.default_rng(seed)
    shuffled = torch.from_numpy(rng.permutation(len(labels)))
    rank = torch.empty(len(labels), dtype=torch.long)  # within the class: the lowest ranks make a balanced choice
    for k in labels.unique():
        members = shuffled[labels[shuffled] == k]
        rank[members] = torch.arange(len(members))
    classes = int(labels.max()) + 1
    # For fewer images than classes, the first classes would be no sample: ImageNet's first 400 are animals.
    turn = torch.arange(classes) if count >= classes else torch.from_numpy(rng.permutation(classes))
    by_rank = torch.argsort(rank * classes + turn[labels], stable=True)
    return by_rank[:count].sort().values
