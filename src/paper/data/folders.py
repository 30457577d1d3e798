"""Folders of images: `root/<split>/<class>/*`."""

import re
from pathlib import Path

import torch

from multishield.errors import UserError
from paper.data import class_names
from paper.data.source import Source, read_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif")


def natural(name: str) -> list:
    """Sort key for names in natural order: 2 before 10."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", name)]


def subfolders(folder: Path) -> list[str]:
    """The names of a folder's visible folders, in natural order."""
    return sorted((p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=natural)


def class_folders(root: Path, split: str) -> list[str]:
    """The names of a split's class folders, in natural order. Raises UserError for fewer than two."""
    folder = root / split
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist; dataset.root must name a folder that holds train/<class>/* and "
            "test/<class>/* images"
        )
    names = subfolders(folder)
    if strange := [name for name in names if not name.isprintable()]:
        raise UserError(f"{folder} holds a folder whose name is no UTF-8 text: {strange[0]!r}; rename it")
    if len(names) < 2:
        raise UserError(f"{folder} holds {len(names)} class folders; at least 2 are needed, one folder per class")
    return names


def open_folder(root: Path, split: str) -> Source | None:
    """Open `root/<split>/<class>/*`. Returns None for "train" if there is no folder `root/train`.

    Classes are in natural order, and so are the images of all classes by their file names: numbered files keep their
    order. A printed sentence counts entries that are no images. Raises UserError if folders are missing or empty.
    """
    if split == "train" and not (root / "train").is_dir():
        return None
    names = class_folders(root, split)
    entries = [p for name in names for p in (root / split / name).iterdir() if not p.name.startswith(".")]
    files = [p for p in entries if p.suffix.lower() in SUFFIXES and p.is_file()]
    files.sort(key=lambda p: (natural(p.name), natural(p.parent.name)))
    if empty := set(names) - {p.parent.name for p in files}:
        raise UserError(f"{root / split / min(empty)} holds no image; accepted are {', '.join(SUFFIXES)}")
    if others := sorted({p.suffix or p.name for p in set(entries) - set(files)}):
        print(f"{root / split}: {len(entries) - len(files)} entries are no image files ({', '.join(others[:5])})")
    labels = torch.tensor([names.index(p.parent.name) for p in files])
    return Source(labels, class_names.without_underscores(names), lambda i: read_image(files[i]))
