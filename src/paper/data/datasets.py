"""Data sets by name: how each is read from the disk, and how a user gets the files that are not there."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from multishield.errors import UserError
from paper import paths
from paper.data import class_names, folders, shapes
from paper.data.source import Source, read_image
from paper.params.sections import Dataset
from paper.params.values import load_factory

SPLIT_SEED = 20241213  # belongs to the data sets without a split of their own, not to the experiment


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


def open_shapes(root: Path, split: str) -> Source:
    """The demo's rendered shapes: 12,000 training and 2,000 test images, 32x32, with captions."""
    images, labels, captions = shapes.load(root, split)
    return Source(torch.from_numpy(labels).long(), list(shapes.CLASSES), images.__getitem__, captions)


def open_imagenet(root: Path, split: str) -> Source | None:
    """ImageNet: `root/val/<WordNet id>/*` is the test split, `root/train/<WordNet id>/*` the training split.

    A label is the synset's index among all 1000, whichever folders are there. Returns None without a training folder.
    Raises UserError if there is no class folder, or if one is not named by a WordNet id of ImageNet's 1000.
    """
    from torchvision.datasets import ImageFolder  # slow to import

    folder = root / ("train" if split == "train" else "val")
    if split == "train" and not folder.is_dir():
        return None
    names, present = class_names.imagenet(), folders.subfolders(folder)
    strange = sorted(set(present) - set(names))
    if strange or not present:
        raise UserError(
            f"{folder} holds {f'the folder {strange[0]}' if strange else 'no folder'}; it must hold a folder per "
            "class, named by one of ImageNet's 1000 WordNet ids, such as n01440764"
        )
    index = torch.tensor([list(names).index(wnid) for wnid in present])
    data = ImageFolder(folder, loader=read_image)
    return Source(index[data.targets], list(names.values()), lambda i: data[i][0])


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
    labels, rng = source.labels, np.random.default_rng(SPLIT_SEED)
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
    names = INFO["pathmnist"]["label"]
    return Source(labels, class_names.in_words(names[str(k)] for k in range(len(names))), images.__getitem__)


OPENERS = {
    "shapes": open_shapes,
    "folder": folders.open_folder,
    "imagenet": open_imagenet,
    "pathmnist": open_pathmnist,
    **{name: partial(_open_torchvision, name) for name in TORCHVISION},
}
# The remedy where the images of a data set are missing; all others are downloaded.
HOW_TO_GET = {
    "shapes": "run `python -m paper data`, which renders it into data/shapes",
    "folder": "give the path of a folder that holds train/<class>/* and test/<class>/* images",
    "imagenet": (
        "register at image-net.org, get ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, and lay the images "
        "out as val/<WordNet id>/*.JPEG in that folder, which torchvision.datasets.ImageNet(folder, 'val') does for "
        "archives that lie in it"
    ),
}


def _how_to_get(name: str) -> str:
    if name not in OPENERS:
        return f"give the path of the folder that {name} reads"
    return HOW_TO_GET.get(name, "run `python -m paper data`, which downloads it")


def check_root(params: Dataset) -> None:
    """Raise a UserError that says how to get the raw images if their folder is not there."""
    if params.root.startswith("~"):  # DVC reads this path too, and knows no home folder
        raise UserError(f"dataset.root is {params.root!r}; write the whole path, {Path(params.root).expanduser()}")
    below, wanted = ("val", "a folder that holds val") if params.name == "imagenet" else ("", "a folder")
    if not (paths.resolve(params.root) / below).is_dir():
        raise UserError(f"dataset.root is {params.root!r}, which is not {wanted}; {_how_to_get(params.name)}")


def open_source(params: Dataset, split: str) -> Source | None:
    """Open the split "train" or "test" of the data set that the parameters name; None if it has no training split.

    Raises UserError if files are missing or damaged, or if names or labels make no sense.
    """
    if params.name == "shapes" and params.image_size != shapes.SIZE:
        raise UserError(
            f"dataset.image_size is {params.image_size}, but the shapes are {shapes.SIZE}x{shapes.SIZE}; "
            f"set it to {shapes.SIZE}"
        )
    opener = OPENERS.get(params.name) or load_factory("dataset.name", params.name)
    try:
        source = opener(paths.resolve(params.root), split)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        if params.name not in OPENERS:
            raise
        reason = str(error).split(". ")[0]  # torchvision goes on with advice that does not fit here
        raise UserError(
            f"dataset.root is {params.root!r}, where {params.name} cannot be read ({reason}); "
            f"{'' if params.name in HOW_TO_GET else 'remove what is unpacked there and '}{_how_to_get(params.name)}"
        ) from None
    if isinstance(source, Source) or (source is None and split == "train"):
        return source
    raise UserError(f"dataset.name is {params.name!r}, which returned {type(source).__name__}; it must return a Source")
