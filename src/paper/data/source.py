"""A raw data set: labels are known at once, images are read one by one, so only those that are drawn are ever read."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from multishield.errors import UserError


@dataclass(frozen=True)
class Source:
    """One raw split, "train" or "test".

    Attributes:
        labels: int64 (N,), in 0..K-1.
        classes: K distinct names, as a prompt wants them.
        read: index in 0..N-1 to an image of any size and mode: PIL, or uint8 (H,W,3).
        captions: N sentences, where the data set has them.
        ids: int64 (N,): what names each image for good; its index in the data set where this is None.
        left_out: how many files lie there that were not taken, and why, in a sentence; "" if there are none.
    """

    labels: torch.Tensor
    classes: list[str]
    read: Callable[[int], Image.Image | np.ndarray]
    captions: list[str] | None = None
    ids: torch.Tensor | None = None
    left_out: str = ""

    def __len__(self) -> int:
        return len(self.labels)


def read_image(path: str | Path) -> Image.Image:
    """One image file as it is seen, in RGB: turned as its EXIF data say, 16 bits scaled to 8, on white where it is
    transparent; of several frames the first.

    Raises:
        UserError: the file is missing, is not a regular file, or is not an image.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file; replace or remove it")
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(path.read_bytes())))
        if image.mode.startswith("I"):
            image = _eight_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except PermissionError:
        raise UserError(f"{path} may not be read by this user; change its permissions") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).split("<")[0].strip() or type(error).__name__
        raise UserError(f"{path} cannot be read as an image ({reason}); replace or remove it") from None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey levels of 16 bits as 8 bits; Pillow's own conversion would cut everything above 255 off."""
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("its grey levels are not within 0..65535")
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
