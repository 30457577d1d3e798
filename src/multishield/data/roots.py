"""Where raw images are, and what to do where they are not."""

from pathlib import Path

from multishield.params import Dataset
from multishield.params.values import DATASETS
from multishield.storage import paths
from multishield.storage.errors import UserError

MEND = {
    "shapes": "run `multishield data`, which renders it into data/shapes",
    "folder": "give the path of a folder that holds train/<class>/* and test/<class>/* images",
    "imagenet": (
        "register at image-net.org, get ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, and lay the images "
        "out as val/<WordNet id>/*.JPEG in that folder, which torchvision.datasets.ImageNet(folder, 'val') does for "
        "archives that lie in it"
    ),
}


def mend(params: Dataset) -> str:
    """What to do where the raw images are not there."""
    if params.name in DATASETS:
        return MEND.get(params.name, "run `multishield data`, which downloads it")
    return f"give the path of the folder that {params.name} reads"


def check_root(params: Dataset) -> None:
    """See that the folder of the raw images is there.

    Raises:
        UserError: it is not; the message says how to get it.
    """
    if params.root.startswith("~"):  # DVC reads this path, too, and knows no home folder
        raise UserError(f"dataset.root is {params.root!r}; write the whole path, {Path(params.root).expanduser()}")
    needed = paths.resolve(params.root) / ("val" if params.name == "imagenet" else "")
    if not needed.is_dir():
        what = "a folder that holds val" if params.name == "imagenet" else "a folder"
        raise UserError(f"dataset.root is {params.root!r}, which is not {what}; {mend(params)}")
