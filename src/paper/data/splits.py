"""Prepared splits, as every stage reads them: safetensors in artifacts/dataset/."""

from multishield.errors import UserError
from multishield.files import mend, read_json
from multishield.images import Split
from paper import paths


def load_split(name: str) -> Split:
    """A prepared split: "train", "validation" or "evaluation"."""
    return Split.load(paths.artifacts("dataset", f"{name}.safetensors"))


def load_classes() -> list[str]:
    """The class names, in the order of the labels."""
    file = paths.artifacts("dataset", "classes.json")
    names = read_json(file)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file} is no list of names; {mend(file, '')}")
    return names


def load_captions() -> list[str] | None:
    """The captions of the prepared training images, where the data set has them."""
    return read_json(paths.artifacts("dataset", "captions.json"))
