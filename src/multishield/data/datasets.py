"""Data sets by name: the loaders that the package has, and functions of one's own; what to do where files are not."""

from multishield.data import class_names, folders, published, shapes
from multishield.data.source import Source
from multishield.params import Dataset
from multishield.params.choices import ByParameter, load_factory
from multishield.params.values import DATASETS
from multishield.storage import paths
from multishield.storage.errors import UserError

OPENERS = ByParameter(
    {
        "shapes": folders.open_shapes,
        "folder": folders.open_folder,
        "cifar10": published.open_cifar10,
        "imagenet": published.open_imagenet,
        "stl10": published.open_stl10,
        "caltech101": published.open_caltech101,
        "food101": published.open_food101,
        "pets": published.open_pets,
        "eurosat": published.open_eurosat,
        "pathmnist": published.open_pathmnist,
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
    """See that the folder of the raw images is there.

    Raises:
        UserError: it is not; the message says how to get it.
    """
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
    if source is None and split == "train":
        return None
    return _checked(source, params.name)


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
