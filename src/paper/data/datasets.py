"""Data sets by name: how each is read from the disk, functions of one's own, and what to do where files are not."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from multishield.errors import UserError
from paper import paths
from paper.data import class_names, folders, shapes
from paper.data.source import Source, read_image
from paper.params import Dataset
from paper.params.choices import ByParameter, load_factory
from paper.params.values import DATASETS

# Of the split of data sets that have none: a property of the data set, so not the experiment's seed.
SPLIT_SEED = 20241213
TEST_SHARE = 0.2


def _torchvision():
    from torchvision import datasets  # slow to import: only these data sets need it

    return datasets


def open_imagenet(root: Path, split: str) -> Source | None:
    """`root/val/<WordNet id>/*` is the test split, `root/train/<WordNet id>/*`, if it is there, the training split.

    A label is the synset's place among all 1000, whichever folders are there.

    Raises UserError if the name of a folder is no WordNet id of ImageNet's 1000, or there is no folder.
    """
    folder = root / ("train" if split == "train" else "val")
    if split == "train" and not folder.is_dir():
        return None
    names, found = class_names.imagenet(), folders.subfolders(folder)
    strange = sorted(set(found) - set(names))
    if strange or not found:
        what = f"the folder {strange[0]}" if strange else "no folder"
        raise UserError(
            f"{folder} holds {what}; it must hold a folder per class, named by one of ImageNet's 1000 WordNet ids, "
            "such as n01440764"
        )
    place = torch.tensor([list(names).index(wnid) for wnid in found])
    data = _torchvision().ImageFolder(folder, loader=read_image)
    return Source(place[data.targets], list(names.values()), lambda i: data[i][0])


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
    return Source(torch.tensor(data._labels), [class_names.plain(c) for c in data.classes], lambda i: data[i][0])


def open_pets(root: Path, split: str) -> Source:
    """Oxford-IIIT Pets: 3,680 training (trainval) and 3,669 test photographs; breeds keep their capitals."""
    data = _torchvision().OxfordIIITPet(root, split="trainval" if split == "train" else "test")
    return Source(torch.tensor(data._labels), data.classes, lambda i: read_image(data._images[i]))


def open_caltech101(root: Path, split: str) -> Source:
    """Caltech-101: photographs of 101 classes, some grey; split 80/20 here, since the data set has no split."""
    data = _torchvision().Caltech101(root)
    folder = Path(data.root) / "101_ObjectCategories"

    def read(i: int) -> Image.Image:
        # What the class's own indexing opens; that also imports scipy, which only its contours need.
        return read_image(folder / data.categories[data.y[i]] / f"image_{data.index[i]:04d}.jpg")

    classes = [class_names.CALTECH101.get(c, class_names.plain(c)) for c in data.categories]
    return _part(Source(torch.tensor(data.y), classes, read), split)


def open_eurosat(root: Path, split: str) -> Source:
    """EuroSAT: 27,000 satellite images, 64x64; split 80/20 here, since the data set has no split."""
    data = _torchvision().EuroSAT(root, loader=read_image)
    classes = [class_names.EUROSAT.get(c, class_names.spoken(c)) for c in data.classes]
    return _part(Source(torch.tensor(data.targets), classes, lambda i: data[i][0]), split)


def open_pathmnist(root: Path, split: str) -> Source:
    """PathMNIST: tissue of the colon, 28x28; 100,000 training (its train, then its val) and 7,180 test images."""
    # Imported here: it makes a folder in the user's home.
    from medmnist import INFO, PathMNIST

    parts = [PathMNIST(split=s, root=root) for s in (["train", "val"] if split == "train" else ["test"])]
    labels = torch.cat([torch.from_numpy(p.labels).long().squeeze(1) for p in parts])
    first = len(parts[0].labels)
    names = INFO["pathmnist"]["label"]
    classes = [class_names.plain(names[k]) for k in sorted(names, key=int)]
    return Source(labels, classes, lambda i: parts[0].imgs[i] if i < first else parts[1].imgs[i - first])


def fifth_of_each_class(labels: torch.Tensor) -> torch.Tensor:
    """Which images of a data set without a split are its test split: a fifth of each class, drawn by `SPLIT_SEED`.

    As bool (N,). Integers only, so the same on every machine.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for k in labels.unique():
        members = (labels == k).nonzero().squeeze(1)
        count = max(1, round(TEST_SHARE * len(members)))
        chosen[members[torch.from_numpy(rng.permutation(len(members)))[:count]]] = True
    return chosen


def _part(whole: Source, split: str) -> Source:
    """The 80 % or the 20 % of a data set without a split; an id is the index in the whole."""
    members = fifth_of_each_class(whole.labels)
    ids = (members if split == "test" else ~members).nonzero().squeeze(1)
    return Source(whole.labels[ids], whole.classes, lambda i: whole.read(int(ids[i])), ids=ids)


OPENERS = ByParameter(
    {
        "shapes": folders.open_shapes,
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
)


MEND = {
    "shapes": "run `multishield data`, which renders it into data/shapes",
    "folder": "give the path of a folder that holds train/<class>/* and test/<class>/* images",
    "imagenet": (
        "register at image-net.org, get ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, and lay the images "
        "out as val/<WordNet id>/*.JPEG in that folder, which torchvision.datasets.ImageNet(folder, 'val') does for "
        "archives that lie in it"
    ),
}


def _mend(params: Dataset) -> str:
    """What to do where the raw images are not there."""
    if params.name in DATASETS:
        return MEND.get(params.name, "run `multishield data`, which downloads it")
    return f"give the path of the folder that {params.name} reads"


def check_root(params: Dataset) -> None:
    """See that the folder of the raw images is there. Raises UserError if not; the message says how to get it."""
    if params.root.startswith("~"):  # DVC reads this path, too, and knows no home folder
        raise UserError(f"dataset.root is {params.root!r}; write the whole path, {Path(params.root).expanduser()}")
    needed = paths.resolve(params.root) / ("val" if params.name == "imagenet" else "")
    if not needed.is_dir():
        what = "a folder that holds val" if params.name == "imagenet" else "a folder"
        raise UserError(f"dataset.root is {params.root!r}, which is not {what}; {_mend(params)}")


def open_source(params: Dataset, split: str) -> Source | None:
    """Open the split "train" or "test" of the data set that the parameters name; None: it has no training split.

    Raises:
        UserError: files are missing or damaged, names or labels make no sense.
    """
    if params.name == "shapes" and params.image_size != shapes.SIZE:
        raise UserError(
            f"dataset.image_size is {params.image_size}, but the shapes are {shapes.SIZE}x{shapes.SIZE}; "
            f"set it to {shapes.SIZE}"
        )
    opener = OPENERS.get(params.name) or load_factory("dataset.name", params.name)
    root = paths.resolve(params.root)
    try:
        source = opener(root, split)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        if params.name not in OPENERS:
            raise
        reason = str(error).split(". ")[0]  # what follows is torchvision's advice, which does not fit here
        raise UserError(
            f"dataset.root is {params.root!r}, where {params.name} cannot be read ({reason}); "
            f"{'' if params.name in MEND else 'remove what is unpacked there and '}{_mend(params)}"
        ) from None
    return None if source is None and split == "train" else _checked(source, params.name)


def _checked(source, name: str) -> Source:
    """The same source, once its type, names and labels are found to make sense."""
    if not isinstance(source, Source):
        raise UserError(f"dataset.name is {name!r}, which returned {type(source).__name__}; it must return a Source")
    class_names.distinct(source.classes, f"the data set {name}")
    if len(source) and not 0 <= int(source.labels.min()) <= int(source.labels.max()) < len(source.classes):
        raise UserError(
            f"the data set {name} has labels from {source.labels.min()} to {source.labels.max()}; with "
            f"{len(source.classes)} classes they must lie in 0..{len(source.classes) - 1}"
        )
    return source
