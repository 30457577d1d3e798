"""Data sets of one's own disk: the rendered shapes, and folders of images."""

import json
import re
from pathlib import Path

import numpy as np
import torch

from multishield.errors import UserError
from paper.data import class_names, shapes
from paper.data.source import Source, read_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif")


def natural(name: str) -> list:
    """A key that sorts names as people count: 2 before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def open_shapes(root: Path, split: str) -> Source:
    """A rendered split (see `shapes.materialise`). Raises UserError if files are missing or damaged."""
    try:
        images, labels = (np.load(root / f"{split}_{part}.npy", allow_pickle=False) for part in ("images", "labels"))
        captions = json.loads((root / f"{split}_captions.json").read_text(encoding="utf-8"))
        if not len(images) == len(labels) == len(captions):
            raise ValueError(f"{len(images)} images, {len(labels)} labels, {len(captions)} captions")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"the shapes in {root} are missing or damaged ({error}); remove that folder and run "
            "`multishield data`, which renders them anew"
        ) from None
    if len(images) == shapes.SPLITS[split]:
        shapes.check_rendered(root, split)
    return Source(torch.from_numpy(labels).long(), list(shapes.CLASSES), images.__getitem__, captions)


def subfolders(folder: Path) -> list[str]:
    """The names of a folder's visible folders, in natural order."""
    return sorted((p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=natural)


def class_folders(root: Path, split: str) -> list[str]:
    """The names of a split's class folders, in natural order.

    Raises:
        UserError: there are fewer than two, or a name is no text.
    """
    folder = root / split
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist; dataset.root must name a folder that holds train/<class>/* and "
            "test/<class>/* images"
        )
    found = subfolders(folder)
    foreign = [name for name in found if not name.isprintable()]
    if foreign:
        raise UserError(f"{folder} holds a folder whose name is no UTF-8 text: {foreign[0]!r}; rename it")
    if len(found) < 2:
        raise UserError(f"{folder} holds {len(found)} class folders; at least 2 are needed, one folder per class")
    return found


def open_folder(root: Path, split: str) -> Source | None:
    """`root/<split>/<class>/*` images; None where there is no folder `root/train`.

    Classes are in natural order (2 before 10), and so are the images of all classes by their file names: an export that
    numbers its files keeps its order.

    Raises:
        UserError: folders are missing or empty, train and test hold different classes.
    """
    if split == "train" and not (root / "train").is_dir():
        return None
    test = class_folders(root, "test")
    train = class_folders(root, "train") if (root / "train").is_dir() else test
    if train != test:
        raise UserError(
            f"{root} has different classes in train and test: only in train {sorted(set(train) - set(test))}, "
            f"only in test {sorted(set(test) - set(train))}; both must have the same class folders"
        )
    inside = [p for name in test for p in (root / split / name).iterdir() if not p.name.startswith(".")]
    files = [p for p in inside if p.suffix.lower() in SUFFIXES and p.is_file()]
    files.sort(key=lambda p: (natural(p.name), natural(p.parent.name)))
    empty = set(test) - {p.parent.name for p in files}
    if empty:
        raise UserError(f"{root / split / min(empty)} holds no image; accepted are {', '.join(SUFFIXES)}")
    labels = torch.tensor([test.index(p.parent.name) for p in files])
    classes = [class_names.plain(name) for name in test]
    return Source(labels, classes, lambda i: read_image(files[i]), left_out=_left_out(root / split, inside, files))


def _left_out(folder: Path, inside: list[Path], taken: list[Path]) -> str:
    """What lies in the class folders and was not taken, in a sentence."""
    others = sorted(set(inside) - set(taken))
    deeper = sum(p.is_dir() for p in others)
    kinds = sorted({p.suffix or p.name for p in others if not p.is_dir()})
    words = [f"{len(others) - deeper} files that are no images ({', '.join(kinds[:5])})"] if kinds else []
    words += [f"{deeper} folders within class folders"] if deeper else []
    return f"{folder}: not taken were {' and '.join(words)}" if words else ""
