"""A raw data set: labels are known at once, images are read one by one, so only those that are drawn are ever read."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from multishield.storage.errors import UserError


@dataclass(frozen=True)
class Source:
    """One raw split, "train" or "test".

    Attributes:
        labels: int64 (N,), in 0..K-1.
        classes: K distinct names, as a prompt wants them.
        read: index in 0..N-1 to an image of any size and mode: PIL, or uint8 (H,W,3).
        captions: N sentences, where the data set has them.
        ids: int64 (N,): what names each image for good; its index in the data set where this is None.
    """

    labels: torch.Tensor
    classes: list[str]
    read: Callable[[int], Image.Image | np.ndarray]
    captions: list[str] | None = None
    ids: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


def read_image(path: str | Path) -> Image.Image:
    """One image file, in RGB. Raises UserError if the file is missing or is not an image."""
    try:
        return Image.open(io.BytesIO(Path(path).read_bytes())).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        reason = str(error).split("<")[0].strip() or type(error).__name__
        raise UserError(f"{path} cannot be read as an image ({reason}); replace or remove it") from None
