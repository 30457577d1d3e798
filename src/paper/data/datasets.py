"""Data sets by name: how each is read from the disk, and how a user gets the files that are not there."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from multishield.errors import UserError
from paper import paths
from paper.data import class_names, folders, shapes
from paper.data.source import Source, read_image
from paper.params.sections import Dataset
from paper.params.values import load_factory

# Some data sets have no split. Theirs belongs to the data set, so its seed is not the experiment's.
SPLIT_SEED = 20241213
TEST_SHARE = 0.2


def _torchvision():
    from torchvision import datasets  # slow to import, and only some data sets need it

    return datasets


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
    index = torch.tensor([list(names).index(wnid) for wnid in present])
    data = _torchvision().ImageFolder(folder, loader=read_image)
    return Source(index[data.targets], list(names.values()), lambda i: data[i][0])


def open_cifar10(root: Path, split: str) -> Source:
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32."""
    data = _torchvision().CIFAR10(root, train=split == "train")
    return Source(torch.tensor(data.targets), data.classes, lambda i: data[i][0])


def open_stl10(root: Path, split: str) -> Source:
    """STL-10: 5,000 training and 8,000 test images, 96x96."""
    data = _torchvision().STL10(root, split=split)
    return Source(torch.from_numpy(data.labels).long(), data.classes, lambda i: data[i][0])


def open_food101(root: Path, split: str) -> Source:
    """Food-101: 75,750 training and 25,250 test photographs."""
    data = _torchvision().Food101(root, split=split, loader=read_image)
    return Source(torch.tensor(data._labels), class_names.without_underscores(data.classes), lambda i: data[i][0])


def open_pets(root: Path, split: str) -> Source:
    """Oxford-IIIT Pets: 3,680 training (trainval) and 3,669 test photographs; breeds keep their capitals."""
    data = _torchvision().OxfordIIITPet(root, split="trainval" if split == "train" else "test")
    return Source(torch.tensor(data._labels), data.classes, lambda i: read_image(data._images[i]))


def open_caltech101(root: Path, split: str) -> Source:
    """Caltech-101: photographs of 101 classes, some grey. It has no split of its own: see `_share`."""
    data = _torchvision().Caltech101(root)
    images = Path(data.root, "101_ObjectCategories")

    def read(i: int) -> Image.Image:
        # The class's own indexing opens the same file, but it also imports scipy for the contours.
        return read_image(images / data.categories[data.y[i]] / f"image_{data.index[i]:04d}.jpg")

    return _share(split, data.y, data.categories, read)


def open_eurosat(root: Path, split: str) -> Source:
    """EuroSAT: 27,000 satellite images, 64x64. It has no split of its own: see `_share`."""
    data = _torchvision().EuroSAT(root, loader=read_image)
    return _share(split, data.targets, data.classes, lambda i: data[i][0])


def _share(split: str, labels: list[int], classes: list[str], read: Callable) -> Source:
    """The training 80 % or the test 20 % of a data set without a split; an id is the index in the whole.

    A fifth of each class is the test split. It is drawn with integers only, so it is the same on every machine.
    """
    labels, rng = torch.tensor(labels), np.random.default_rng(SPLIT_SEED)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for k in labels.unique():
        members = (labels == k).nonzero().squeeze(1)
        count = max(1, round(TEST_SHARE * len(members)))
        chosen[members[torch.from_numpy(rng.permutation(len(members)))[:count]]] = True
    ids = (chosen if split == "test" else ~chosen).nonzero().squeeze(1)
    words = class_names.without_underscores(class_names.IN_WORDS.get(name, name) for name in classes)
    return Source(labels[ids], words, lambda i: read(int(ids[i])), ids=ids)


def open_pathmnist(root: Path, split: str) -> Source:
    """PathMNIST: tissue of the colon, 28x28; 100,000 training (its train, then its val) and 7,180 test images."""
    from medmnist import INFO, PathMNIST  # this import makes a folder in the user's home

    loaded = [PathMNIST(split=s, root=root) for s in (["train", "val"] if split == "train" else ["test"])]
    images = [image for data in loaded for image in data.imgs]
    labels = torch.cat([torch.from_numpy(data.labels).long().squeeze(1) for data in loaded])
    names = INFO["pathmnist"]["label"]
    return Source(labels, class_names.without_underscores(names[k] for k in sorted(names, key=int)), images.__getitem__)


OPENERS = {
    "shapes": open_shapes,
    "folder": folders.open_folder,
    "cifar10": open_cifar10,
    "imagenet": open_imagenet,
    "stl10": open_stl10,
    "caltech101": open_caltech101,
    "food101": open_food101,
    "pets": open_pets,
    "eurosat": open_eurosat,
    "pathmnist": open_pathmnist,
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
    if isinstance(source, Source) or (source is None and split == "train"):
        return source
    raise UserError(f"dataset.name is {params.name!r}, which returned {type(source).__name__}; it must return a Source")
