"""Prepared splits, as every stage reads them: safetensors in artifacts/dataset/."""

from multishield.errors import UserError
from multishield.files import how_to_fix, read_json
from multishield.images import Images
from paper import paths


def load_split(name: str) -> Images:
    """Load a prepared split: "train", "validation" or "evaluation"."""
    return Images.load(paths.artifacts("dataset", f"{name}.safetensors"))


def load_classes() -> list[str]:
    """Load the class names, in the order of the labels."""
    file = paths.artifacts("dataset", "classes.json")
    names = read_json(file)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file} is no list of names; {how_to_fix(file, '')}")
    return names


def load_captions() -> list[str] | None:
    """Load the captions of the prepared training images; None if the data set has no captions."""
    return read_json(paths.artifacts("dataset", "captions.json"))
