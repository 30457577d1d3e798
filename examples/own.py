"""A data set, a classifier and a CLIP of one's own, the smallest that work (notebooks/extending.ipynb).

params.yaml names each as "module:function", and modules in the project's root are found. The other examples use the
images and the classifier, which need torch and numpy alone.
"""

import numpy as np
import torch
from torch import nn

CLASSES = ["upright stripes", "level stripes"]


def striped_image(split: str, number: int) -> np.ndarray:
    """One noisy image of stripes, uint8 (32,32,3): upright for even numbers, level for odd ones."""
    rng = np.random.default_rng([split == "test", number])
    wave = 0.5 + 0.25 * np.sin(np.arange(32) * rng.uniform(0.6, 1.2) + rng.uniform(0, 6))
    image = np.tile(wave, (32, 1)) if number % 2 == 0 else np.tile(wave[:, None], (1, 32))
    noisy = image[..., None] + rng.normal(0, 0.04, (32, 32, 3))
    return (255 * noisy.clip(0, 1)).astype(np.uint8)


def images_and_labels(split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images of "train" or "test", float32 (N,3,32,32) in [0,1], and their labels (N,)."""
    images = torch.stack([torch.from_numpy(striped_image(split, number)) for number in range(count)])
    return images.permute(0, 3, 1, 2).float() / 255, torch.arange(count) % 2


def stripes(root, split: str):
    """A data set. `root` is dataset.root, `split` is "train" or "test"."""
    from paper.data.source import Source

    labels = torch.arange({"train": 200, "test": 100}[split]) % 2
    return Source(labels, CLASSES, read=lambda number: striped_image(split, number))


class Changes(nn.Module):
    """How much an image changes from column to column and from row to row, at one distance: (B,3,H,W) to (B,2)."""

    def __init__(self, distance: int, scale: float):
        super().__init__()
        self.distance = distance
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x):
        d = self.distance
        columns, rows = x[..., d:] - x[..., :-d], x[..., d:, :] - x[..., :-d, :]
        return self.scale * torch.stack([columns.square().mean((1, 2, 3)), rows.square().mean((1, 2, 3))], 1)


def neighbours(classes: int) -> nn.Module:
    """A classifier: pixels in [0,1] to logits of `classes` classes."""
    return Changes(1, 100.0)


def stripes_clip():
    """A CLIP: `visual`, `encode_text(tokens, normalize)`, `logit_scale`; a tokenizer; its preprocessing."""
    from open_clip.transform import PreprocessCfg

    from multishield.clip import Clip

    model = nn.Module()
    model.visual = Changes(2, 1.0)
    model.logit_scale = nn.Parameter(torch.tensor(100.0).log())
    model.encode_text = lambda tokens, normalize: nn.functional.one_hot(tokens, 2).float()
    return Clip(
        model,
        tokenizer=lambda texts: torch.tensor([int("level" in text) for text in texts]),
        preprocessing=PreprocessCfg(size=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize_mode="squash"),
    )
