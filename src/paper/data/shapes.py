"""The demo data set: ten shapes, rendered with a seed in seconds, each with a caption.

It stands in for CIFAR-10, and says nothing about real images. Images are 32x32 RGB: one shape on a textured background.
"""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import torch

from multishield.errors import UserError
from multishield.files import write_atomically, write_json
from multishield.progress import progress
from paper.data.source import Source

SIZE, SUPERSAMPLING = 32, 3
CLASSES = ("arrow", "bar", "circle", "crescent", "cross", "heart", "ring", "square", "star", "triangle")
CONTRAST = (0.4, 0.7)  # RGB distance of shape and background
TEXTURE, NOISE = 0.06, 0.04  # standard deviations of the low-frequency texture and of the pixel noise
FILES = ("{}_images.npy", "{}_labels.npy", "{}_captions.json")
# Per split the number of images, and the SHA-256 of its three files, joined: any machine renders these bytes.
SPLITS = {
    "train": (8_000, "d44fb4a9d4fb68a213495a6e373ab16beda4bb02daa517af66f9b188185b3869"),
    "test": (1_000, "9c25d11430aaed0830e2ecadaeba90799f931c25f571e5d8f0c2b2a18d32af76"),
}


def load(folder: Path, split: str) -> Source:
    """Load a split that `materialise` wrote, with captions. Raises UserError for other bytes than those rendered."""
    images, labels, captions = ((folder / name.format(split)).read_bytes() for name in FILES)
    if hashlib.sha256(images + labels + captions).hexdigest() != SPLITS[split][1]:
        given = f"the shapes in {folder} are damaged, because they are other bytes than those that are rendered"
        raise UserError(f"{given}; remove that folder and run `python -m paper data`, which renders them again")
    labels = torch.from_numpy(np.load(io.BytesIO(labels)))
    return Source(labels, list(CLASSES), np.load(io.BytesIO(images)).__getitem__, json.loads(captions))


def _half_planes(u: np.ndarray, v: np.ndarray, corners: int, turn: float, inradius: float) -> np.ndarray:
    """The points in each of the half-planes whose intersection is a regular polygon."""
    angles = 2 * np.pi * np.arange(corners) / corners + turn
    return np.stack([u * np.cos(a) + v * np.sin(a) <= inradius for a in angles])


# Which points (u, v) of the shape's own frame belong to it; every shape lies in the unit disc.
INSIDE = {
    "arrow": lambda u, v: (
        ((np.abs(v) <= 0.2) & (u >= -1) & (u <= 0.15)) | ((u >= 0.05) & (np.abs(v) <= 0.75 * (1 - u) / 0.95))
    ),
    "bar": lambda u, v: (np.abs(u) <= 0.95) & (np.abs(v) <= 0.28),
    "circle": lambda u, v: u**2 + v**2 <= 0.72,
    "crescent": lambda u, v: (u**2 + v**2 <= 0.9) & ((u - 0.42) ** 2 + v**2 > 0.6),
    "cross": lambda u, v: ((np.abs(u) <= 0.27) & (np.abs(v) <= 0.95)) | ((np.abs(v) <= 0.27) & (np.abs(u) <= 0.95)),
    "heart": lambda u, v: (1.25 * u) ** 2 + (1.2 * v + 0.15 - np.sqrt(np.abs(1.25 * u))) ** 2 <= 0.95,
    "ring": lambda u, v: (u**2 + v**2 <= 0.9) & (u**2 + v**2 > 0.33),
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 0.72,
    # A pentagram: the points that at least four of five half-planes contain.
    "star": lambda u, v: (_half_planes(u, v, 5, np.pi / 2, 0.36).sum(axis=0) >= 4) & (u**2 + v**2 <= 1),
    "triangle": lambda u, v: _half_planes(u, v, 3, -np.pi / 2, 0.48).all(axis=0),
}


def _coverage(inside, x0: float, y0: float, radius: float, angle: float) -> np.ndarray:
    """The share of each pixel that a shape covers: (SIZE, SIZE) in [0,1]."""
    centres = (np.arange(SIZE * SUPERSAMPLING) + 0.5) / SUPERSAMPLING
    x, y = centres[None, :], centres[:, None]
    u = ((x - x0) * np.cos(angle) + (y - y0) * np.sin(angle)) / radius
    v = (-(x - x0) * np.sin(angle) + (y - y0) * np.cos(angle)) / radius
    rows = sum(inside(u, v).view(np.uint8).reshape(SIZE, SUPERSAMPLING, -1).swapaxes(0, 1))
    return sum(rows.reshape(SIZE, SIZE, SUPERSAMPLING).transpose(2, 0, 1)) / SUPERSAMPLING**2


def _texture(rng: np.random.Generator) -> np.ndarray:
    """Smooth noise: a 5x5 grid of normal values, enlarged bilinearly. (SIZE, SIZE, 1)."""
    coarse = rng.normal(0, TEXTURE, (5, 5))
    positions = np.linspace(0, 4, SIZE)
    low = np.minimum(positions.astype(int), 3)
    weight = positions - low
    rows = coarse[low] * (1 - weight)[:, None] + coarse[low + 1] * weight[:, None]
    return (rows[:, low] * (1 - weight) + rows[:, low + 1] * weight)[:, :, None]


def render(label: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Draw one image of the class `CLASSES[label]`: uint8 (SIZE,SIZE,3), and its caption.

    The caption names the shape and, with probability one half, its size; from colours a CLIP would learn nothing else.
    """
    shape = background = np.zeros(3)
    while not CONTRAST[0] <= np.linalg.norm(shape - background) <= CONTRAST[1]:
        shape, background = rng.uniform(0.1, 0.9, (2, 3))
    radius = rng.uniform(9, 14)
    x0, y0 = rng.uniform(radius, SIZE - radius, 2)
    image = background + _texture(rng)
    for _ in range(2):  # clutter: small discs, their colour half-way between background and shape
        speck = _coverage(INSIDE["circle"], *rng.uniform(0, SIZE, 2), rng.uniform(1, 2.5), 0.0)[:, :, None]
        image = image * (1 - speck) + speck * (background + shape) / 2
    cover = _coverage(INSIDE[CLASSES[label]], x0, y0, radius, rng.uniform(0, 2 * np.pi))[:, :, None]
    image = image * (1 - cover) + cover * (shape + _texture(rng) / 2)
    image = image + rng.normal(0, NOISE, image.shape)
    size = ("large " if radius > 11.5 else "small ") if rng.random() < 0.5 else ""
    caption = f"this is a photo of a {size}{CLASSES[label]}"
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8), caption


def render_split(split: str, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images uint8 (count,SIZE,SIZE,3), labels int64 (count,) in turn, and captions; i depends on (split, i) alone."""
    rows, number = progress(range(count), f"rendering shapes, {split}", "image"), list(SPLITS).index(split)
    drawn = [render(i % len(CLASSES), np.random.default_rng([number, i])) for i in rows]
    images, captions = zip(*drawn, strict=True)
    return np.stack(images), np.arange(count) % len(CLASSES), list(captions)


def materialise(folder: Path) -> None:
    """Write the data set into `folder`, three files per split, unless they are there. Raises UserError if damaged."""
    for split, (count, _) in SPLITS.items():
        *files, captions = (folder / name.format(split) for name in FILES)
        if not all(file.exists() for file in (*files, captions)):
            *arrays, sentences = render_split(split, count)
            for file, array in zip(files, arrays, strict=True):
                buffer = io.BytesIO()
                np.save(buffer, array)
                write_atomically(file, lambda p, b=buffer: p.write_bytes(b.getvalue()))
            write_json(captions, sentences)
        load(folder, split)  # DVC would pin damaged files
