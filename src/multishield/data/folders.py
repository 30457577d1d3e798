"""Data sets of one's own disk: the rendered shapes, and folders of images."""

import json
from pathlib import Path

import numpy as np
import torch

from multishield.data import class_names, shapes
from multishield.data.source import Source, read_image
from multishield.storage.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def open_shapes(root: Path, split: str) -> Source:
    """A rendered split (see `shapes.materialise`).

    Raises:
        UserError: files are missing or damaged.
    """
    try:
        images, labels = (np.load(root / f"{split}_{part}.npy", allow_pickle=False) for part in ("images", "labels"))
        captions = json.loads((root / f"{split}_captions.json").read_text())
        if not len(images) == len(labels) == len(captions):
            raise ValueError(f"{len(images)} images, {len(labels)} labels, {len(captions)} captions")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"the shapes in {root} are missing or damaged ({error}); remove that folder and run "
            "`multishield data`, which renders them anew"
        ) from None
    return Source(torch.from_numpy(labels).long(), list(shapes.CLASSES), images.__getitem__, captions)


def _class_folders(root: Path, split: str) -> list[str]:
    folder = root / split
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist; dataset.root must name a folder that holds train/<class>/* and "
            "test/<class>/* images"
        )
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(found) < 2:
        raise UserError(f"{folder} holds {len(found)} class folders; at least 2 are needed, one folder per class")
    return found


def open_folder(root: Path, split: str) -> Source | None:
    """`root/<split>/<class>/*` images; None where there is no folder `root/train`.

    The images of all classes are ordered by file name, so that an export that numbers its files keeps its order.

    Raises:
        UserError: folders are missing or empty, train and test hold different classes.
    """
    if split == "train" and not (root / "train").is_dir():
        return None
    test = _class_folders(root, "test")
    train = _class_folders(root, "train") if (root / "train").is_dir() else test
    if train != test:
        raise UserError(
            f"{root} has different classes in train and test: only in train {sorted(set(train) - set(test))}, "
            f"only in test {sorted(set(test) - set(train))}; both must have the same class folders"
        )
    files = [p for name in test for p in (root / split / name).iterdir() if p.suffix.lower() in SUFFIXES]
    files.sort(key=lambda p: (p.name, p.parent.name))
    empty = set(test) - {p.parent.name for p in files}
    if empty:
        raise UserError(f"{root / split / min(empty)} holds no image; accepted are {', '.join(SUFFIXES)}")
    labels = torch.tensor([test.index(p.parent.name) for p in files])
    return Source(labels, [class_names.plain(name) for name in test], lambda i: read_image(files[i]))
