"""Data sets by name: how each is read from the disk, and how a user gets the files that are not there."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import torch

from multishield.errors import UserError
from paper import paths
from paper.data import class_names, shapes
from paper.data.source import Source, read_image
from paper.params.sections import Dataset
from paper.params.values import load_factory

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif")


def _caltech101_file(data, i: int) -> Path:
    return Path(data.root, "101_ObjectCategories", data.categories[data.y[i]], f"image_{data.index[i]:04d}.jpg")


# Data sets that torchvision reads: its class, its options for the training and for the test split, the attribute of the
# labels, and the file of image i where `read_image` reads it. Without options there is no split, see `_share`.
TORCHVISION = {
    "cifar10": ("CIFAR10", {"train": True}, {"train": False}, "targets", None),
    "stl10": ("STL10", {"split": "train"}, {"split": "test"}, "labels", None),
    "caltech101": ("Caltech101", {}, {}, "y", _caltech101_file),
    "food101": ("Food101", {"split": "train"}, {"split": "test"}, "_labels", lambda data, i: data._image_files[i]),
    "pets": ("OxfordIIITPet", {"split": "trainval"}, {"split": "test"}, "_labels", lambda data, i: data._images[i]),
    "eurosat": ("EuroSAT", {}, {}, "targets", lambda data, i: data.samples[i][0]),
}


def natural(name: str) -> list:
    """Sort key for names in natural order: 2 before 10."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", name)]


def class_folders(folder: Path) -> list[str]:
    """A split's visible folders, in natural order. UserErrors: less than two, images beside them, and broken links."""
    names = sorted((p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=natural)
    if strange := [name for name in names if not name.isprintable()]:
        raise UserError(f"{folder} holds a folder whose name is no UTF-8 text: {strange[0]!r}; rename it")
    if len(names) < 2:
        raise UserError(f"{folder} holds {len(names)} class folders; at least 2 are needed, one folder per class")
    if loose := [p for p in folder.glob("[!.]*") if p.suffix.lower() in SUFFIXES and p.is_file()]:
        given = f"{folder} holds {len(loose)} images beside its {len(names)} class folders, such as {min(loose).name}"
        raise UserError(f"{given}; move each into the folder of its class")
    if lost := [p for p in (*folder.iterdir(), *folder.glob("*/*")) if p.is_symlink() and not p.exists()]:
        raise UserError(f"{folder} holds {len(lost)} links that lead nowhere, such as {lost[0]}; mend or remove them")
    return names


def open_folder(root: Path, split: str, test: str = "test") -> Source | None:
    """Open `root/train/<class>/*`, or the folder `test` beside it. Returns None if there is no folder `root/train`.

    Classes are in natural order, and so are the images of all classes by their file names: numbered files keep their
    order. A printed sentence counts entries that are no images. Raises UserError if folders are missing or empty.
    """
    folder = root / (test if split == "test" else split)
    if split == "train" and not folder.is_dir():
        return None
    names = class_folders(folder)
    entries = [p for name in names for p in (folder / name).iterdir() if not p.name.startswith(".")]
    files = [p for p in entries if p.suffix.lower() in SUFFIXES and p.is_file()]
    files.sort(key=lambda p: (natural(p.name), natural(p.parent.name)))
    if empty := set(names) - {p.parent.name for p in files}:
        raise UserError(f"{folder / min(empty)} holds no image; accepted are {', '.join(SUFFIXES)}")
    if others := sorted({p.suffix or p.name for p in set(entries) - set(files)}):
        print(f"{folder}: {len(entries) - len(files)} entries are no image files ({', '.join(others[:5])})")
    labels = torch.tensor([names.index(p.parent.name) for p in files])
    return Source(labels, class_names.in_words(names, class_names.OF_FOLDERS), lambda i: read_image(files[i]))


def open_imagenet(root: Path, split: str) -> Source | None:
    """ImageNet: `root/val/<WordNet id>/*` is the test split, `root/train/<WordNet id>/*` the training split.

    A label is the synset's index among all 1000, whichever folders are there. Raises UserError as `open_folder` does,
    and if a folder is not named by a WordNet id of the 1000.
    """
    source, names = open_folder(root, split, test="val"), class_names.imagenet()
    if source is None:
        return None
    if strange := set(source.classes) - set(names):
        raise UserError(f"{root} holds the folder {min(strange)}; name folders by WordNet ids, such as n01440764")
    index = torch.tensor([list(names).index(wnid) for wnid in source.classes])
    return Source(index[source.labels], list(names.values()), source.read)


def _open_torchvision(name: str, root: Path, split: str) -> Source:
    from torchvision import datasets  # slow to import, and only some data sets need it

    class_name, train, test, labels, file = TORCHVISION[name]
    data = getattr(datasets, class_name)(root, **(train if split == "train" else test))
    names = class_names.in_words(data.categories if name == "caltech101" else data.classes)
    read = (lambda i: read_image(file(data, i))) if file else (lambda i: data[i][0])
    source = Source(torch.as_tensor(getattr(data, labels)).long(), names, read)
    return source if train else _share(source, split)


def _share(source: Source, split: str) -> Source:
    """A split of a whole data set: a fifth of each class is the test split, the same on every machine."""
    labels, rng = source.labels, np.random.default_rng(20241213)  # the data set's seed, not the experiment's
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for k in labels.unique():
        members = (labels == k).nonzero().squeeze(1)
        count = max(1, round(0.2 * len(members)))
        chosen[members[torch.from_numpy(rng.permutation(len(members)))[:count]]] = True
    ids = (chosen if split == "test" else ~chosen).nonzero().squeeze(1)
    return Source(labels[ids], source.classes, lambda i: source.read(int(ids[i])), ids=ids)


def open_pathmnist(root: Path, split: str) -> Source:
    """PathMNIST: tissue of the colon, 28x28; 100,000 training (its train, then its val) and 7,180 test images."""
    from medmnist import INFO, PathMNIST  # this import makes a folder in the user's home

    loaded = [PathMNIST(split=s, root=root) for s in (["train", "val"] if split == "train" else ["test"])]
    images = [image for data in loaded for image in data.imgs]
    labels = torch.cat([torch.from_numpy(data.labels).long().squeeze(1) for data in loaded])
    return Source(labels, class_names.in_words(INFO["pathmnist"]["label"].values()), images.__getitem__)


OPENERS = {
    "shapes": shapes.load,
    "folder": open_folder,
    "imagenet": open_imagenet,
    "pathmnist": open_pathmnist,
    **{name: partial(_open_torchvision, name) for name in TORCHVISION},
}
HOW_TO_GET = {
    **dict.fromkeys([*TORCHVISION, "pathmnist"], "run `python -m paper data`, which downloads it"),
    "shapes": "run `python -m paper data`, which renders it into data/shapes",
    "folder": "give the path of a folder that holds train/<class>/* and test/<class>/* images",
    "imagenet": (
        "put ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz of image-net.org into that folder, and call "
        "torchvision.datasets.ImageNet(folder, 'val'), which makes val/<WordNet id>/*.JPEG there"
    ),
}


def check_root(params: Dataset) -> None:
    """Raise a UserError that says how to get the raw images if their folder is not there."""
    if params.root.startswith("~"):  # DVC reads this path too, and knows no home folder
        raise UserError(f"dataset.root is {params.root!r}; write the whole path, {paths.resolve(params.root)}")
    folder = paths.resolve(params.root) / {"imagenet": "val", "folder": "test"}.get(params.name, "")
    if not folder.is_dir():
        remedy = HOW_TO_GET.get(params.name, f"give the path of the folder that {params.name} reads")
        if ".dvc" in paths.root().parts:  # a copy that `dvc exp run --temp` made, of tracked files alone
            remedy = "an experiment in a folder of its own needs the whole path of the images"
        raise UserError(f"dataset.root is {params.root!r}, but {folder} is not a folder; {remedy}")


def open_source(params: Dataset, split: str) -> Source | None:
    """Open the split "train" or "test" of the data set that the parameters name; None if it has no training split.

    Raises UserError if files are missing or damaged, or if names or labels make no sense.
    """
    opener = OPENERS.get(params.name) or load_factory("dataset.name", params.name)
    try:
        source = opener(paths.resolve(params.root), split)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        if params.name not in OPENERS:
            raise
        reason = str(error).split(". ")[0]  # torchvision goes on with advice that does not fit here
        given = f"dataset.root is {params.root!r}, where {params.name} cannot be read ({reason})"
        raise UserError(f"{given}; {HOW_TO_GET[params.name]}") from None
    if isinstance(source, Source) or (source is None and split == "train"):
        return source
    raise UserError(f"dataset.name is {params.name!r}, which returned {type(source).__name__}; it must return a Source")
