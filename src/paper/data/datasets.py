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

# Some data sets have no split. Theirs belongs to the data set, so its seed is not the experiment's.
SPLIT_SEED = 20241213
TEST_SHARE = 0.2
TORCHVISION = ("cifar10", "stl10", "food101", "pets", "caltech101", "eurosat")


def open_shapes(root: Path, split: str) -> Source:
    """The demo's rendered shapes: 12,000 training and 2,000 test images, 32x32, with captions."""
    images, labels, captions = shapes.load(root, split)
    return Source(torch.from_numpy(labels).long(), list(shapes.CLASSES), images.__getitem__, captions)


def open_imagenet(root: Path, split: str) -> Source | None:
    """ImageNet: `root/val/<WordNet id>/*` is the test split, `root/train/<WordNet id>/*` the training split.

    A label is the synset's index among all 1000, whichever folders are there. The training split may be missing.
    Raises UserError if there is no class folder, or if the name of one is no WordNet id of ImageNet's 1000.
    """
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
    from torchvision.datasets import ImageFolder  # slow to import

    index = torch.tensor([list(names).index(wnid) for wnid in present])
    data = ImageFolder(folder, loader=read_image)
    return Source(index[data.targets], list(names.values()), lambda i: data[i][0])


def open_torchvision(name: str, root: Path, split: str) -> Source:
    """A data set that a class of torchvision reads. Counts below are of training and test images."""
    from torchvision import datasets  # slow to import

    data = {
        "cifar10": lambda: datasets.CIFAR10(root, train=split == "train"),  # 50,000 and 10,000, 32x32
        "stl10": lambda: datasets.STL10(root, split=split),  # 5,000 and 8,000, 96x96
        "food101": lambda: datasets.Food101(root, split=split, loader=read_image),  # 75,750 and 25,250
        "pets": lambda: datasets.OxfordIIITPet(root, split="trainval" if split == "train" else "test"),  # 3,680, 3,669
        "caltech101": lambda: datasets.Caltech101(root),  # 8,677, which have no split
        "eurosat": lambda: datasets.EuroSAT(root, loader=read_image),  # 27,000, 64x64, which have no split
    }[name]()
    labels = next(vars(data)[key] for key in ("targets", "labels", "_labels", "y") if key in vars(data))
    names = data.categories if name == "caltech101" else data.classes
    classes = [class_names.IN_WORDS.get(c, class_names.plain(c)) for c in names]
    read = {
        "pets": lambda i: read_image(data._images[i]),
        "caltech101": lambda i: read_image(
            Path(data.root, "101_ObjectCategories", data.categories[data.y[i]], f"image_{data.index[i]:04d}.jpg")
        ),
    }.get(name, lambda i: data[i][0])
    labels = torch.as_tensor(labels).long()
    if name not in ("caltech101", "eurosat"):
        return Source(labels, classes, read)
    rows = rows_of(split, labels)
    return Source(labels[rows], classes, lambda i: read(int(rows[i])), ids=rows)


def rows_of(split: str, labels: torch.Tensor) -> torch.Tensor:
    """The rows of a split of a data set without splits, int64: a fifth of each class is its test split.

    `SPLIT_SEED` draws it with integers only, so it is the same on every machine.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for k in labels.unique():
        members = (labels == k).nonzero().squeeze(1)
        count = max(1, round(TEST_SHARE * len(members)))
        chosen[members[torch.from_numpy(rng.permutation(len(members)))[:count]]] = True
    return (chosen if split == "test" else ~chosen).nonzero().squeeze(1)


def open_pathmnist(root: Path, split: str) -> Source:
    """PathMNIST: tissue of the colon, 28x28; 100,000 training (its train, then its val) and 7,180 test images."""
    from medmnist import INFO, PathMNIST  # this import makes a folder in the user's home

    loaded = [PathMNIST(split=s, root=root) for s in (["train", "val"] if split == "train" else ["test"])]
    images = [image for data in loaded for image in data.imgs]
    labels = torch.cat([torch.from_numpy(data.labels).long().squeeze(1) for data in loaded])
    names = INFO["pathmnist"]["label"]
    return Source(labels, [class_names.plain(names[k]) for k in sorted(names, key=int)], images.__getitem__)


OPENERS = {
    "shapes": open_shapes,
    "folder": folders.open_folder,
    "imagenet": open_imagenet,
    "pathmnist": open_pathmnist,
    **{name: partial(open_torchvision, name) for name in TORCHVISION},
}
# How to get the data sets that are not downloaded.
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
    """Check that the folder of the raw images is there. Raises UserError if not; the message says how to get them."""
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
    if source is None and split == "train":
        return None
    if not isinstance(source, Source):
        raise UserError(
            f"dataset.name is {params.name!r}, which returned {type(source).__name__}; it must return a Source"
        )
    class_names.check_distinct(source.classes, f"the data set {params.name}")
    last = len(source.classes) - 1
    if len(source) and not 0 <= source.labels.min() <= source.labels.max() <= last:
        raise UserError(
            f"the data set {params.name} has labels from {source.labels.min()} to {source.labels.max()}; with "
            f"{last + 1} classes they must lie in 0..{last}"
        )
    return source
