"""Published data sets, read by torchvision and medmnist from what was downloaded."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from multishield.data import class_names
from multishield.data.source import Source, read_image
from multishield.storage.errors import UserError

# Of the split of data sets that have none: a property of the data set, so not the experiment's seed.
SPLIT_SEED = 20241213
TEST_SHARE = 0.2


def _torchvision():
    from torchvision import datasets  # slow to import: only these data sets need it

    return datasets


def _synsets(folder: Path) -> list[str]:
    """The class folders of ImageNet, sorted.

    Raises:
        UserError: one is no WordNet id of ImageNet's 1000, or there is none.
    """
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    strange = sorted(set(found) - set(class_names.imagenet()))
    if strange or not found:
        what = f"the folder {strange[0]}" if strange else "no folder"
        raise UserError(
            f"{folder} holds {what}; it must hold a folder per class, named by one of ImageNet's 1000 WordNet ids, "
            "such as n01440764"
        )
    return found


def open_imagenet(root: Path, split: str) -> Source | None:
    """`root/val/<WordNet id>/*` is the test split, `root/train/<WordNet id>/*`, if it is there, the training split.

    A label is the synset's place among all 1000, whichever folders are there.
    """
    folder = root / ("train" if split == "train" else "val")
    if split == "train" and not folder.is_dir():
        return None
    names = class_names.imagenet()
    place = torch.tensor([list(names).index(wnid) for wnid in _synsets(folder)])
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
    classes = [
        class_names.plain(label) for _, label in sorted(INFO["pathmnist"]["label"].items(), key=lambda x: int(x[0]))
    ]
    return Source(labels, classes, lambda i: parts[0].imgs[i] if i < first else parts[1].imgs[i - first])


def fifth_of_each_class(labels: torch.Tensor) -> torch.Tensor:
    """Which images of a data set without a split are its test split: a fifth of each class, drawn by `SPLIT_SEED`.

    Returns:
        bool (N,). Integers only, so the same on every machine.
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
