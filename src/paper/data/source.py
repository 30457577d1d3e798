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

    Raises UserError if two names differ in capitals alone, a name is empty, or a label has no name.
    """

    labels: torch.Tensor  # int64 (N,), in 0..K-1
    classes: list[str]  # K distinct names, as words of a prompt
    read: Callable[[int], Image.Image | np.ndarray]  # index to an image of any size and mode: PIL, or uint8 (H,W,3)
    captions: list[str] | None = None  # N sentences, or None
    ids: torch.Tensor | None = None  # int64 (N,), which name an image for good; None: its index is its id

    def __post_init__(self):
        folded = [name.casefold() for name in self.classes]
        if twice := [name for name in folded if folded.count(name) > 1]:  # CLIP's tokenizers drop capitals
            raise UserError(
                f"the data set has two classes called {twice[0]!r}, which CLIP cannot tell apart; give them other names"
            )
        if not all(folded):
            raise UserError("the data set has a class without a name; give every class a name")
        if len(self) and not 0 <= self.labels.min() <= self.labels.max() < len(folded):
            raise UserError(
                f"the data set has labels from {self.labels.min()} to {self.labels.max()}; with {len(folded)} classes "
                f"they must lie in 0..{len(folded) - 1}"
            )

    def __len__(self) -> int:
        return len(self.labels)


def read_image(path: str | Path) -> Image.Image:
    """Read one image file as RGB, as a viewer shows it: turned by its EXIF data, transparent pixels white.

    16 bits are scaled to 8, and the first of several frames is read. Raises UserError if it is no image file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file; replace or remove it")
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(path.read_bytes())))
        if image.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion would clip everything above 255
            levels = np.asarray(image).astype(np.int64)
            if levels.min() < 0 or levels.max() > 65535:
                raise ValueError("its grey levels are not within 0..65535")
            image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).split("<")[0].strip() or type(error).__name__
        raise UserError(f"{path} cannot be read as an image ({reason}); mend, replace or remove it") from None
