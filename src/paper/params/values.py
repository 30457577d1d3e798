"""Values of params.yaml: the accepted names, radii and texts, and the functions that it names."""

import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, TypeAdapter, ValidationError, create_model

from multishield.budget import radius
from multishield.errors import UserError
from multishield.files import how_to_fix, read_json
from paper import paths

AA_ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
# AutoAttack's version of that name.
AA_STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
# The number of classes that a loss needs: it uses the third or fourth largest logit (Croce & Hein 2020).
NEEDED = {"apgd-dlr": 3, "apgd-t": 4}
DATASETS = ("shapes", "folder", "cifar10", "imagenet", "stl10", "caltech101", "food101", "pets", "eurosat", "pathmnist")
# Families of defences that are compared (`stages.comparison`), the reference first.
FAMILIES = ("logit margin", "softmax", "squeezing", "consistency", "CPR", "Multi-Shield", "Multi-Shield, margins")
FAMILIES += ("CLIP's margin", "log-probabilities")
ARCHITECTURES = ("resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet18")


def parse_eps(value) -> float:
    """Read a radius given as "8/255" or as a number. Raises ValueError if it is not strictly between 0 and 1."""
    eps = radius(value)
    if not 0 < eps < 1:
        raise ValueError('must lie strictly between 0 and 1, because pixels are in [0,1]: write "8/255", not 8')
    return eps


def matching(pattern: str, message: str):
    """The type of a text that matches a regular expression as a whole; `message` says what is accepted."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(message)
        return text

    return Annotated[str, AfterValidator(check)]


def check_attacks(attacks: tuple[str, ...], classes: int) -> None:
    """Raise a UserError if one of AutoAttack's attacks needs more classes."""
    for name in attacks:
        if classes < NEEDED.get(name, 0):
            given = f"baseline.attacks holds {name}, whose loss needs {NEEDED[name]} classes, but there are {classes}"
            raise UserError(f"{given}; write attacks: [apgd-ce, fab, square], which AutoAttack uses for so few")


def stored(path: Path, kind=None, **keys):
    """A JSON file of a stage: of one kind, or with keys of such kinds. Raises UserError if it is missing or damaged."""
    try:
        kind = kind or create_model("File", **{key: (value, ...) for key, value in keys.items()})
        return TypeAdapter(kind).validate_python(read_json(path), strict=True)
    except ValidationError as error:
        reason = ": ".join([*map(str, error.errors()[0]["loc"]), error.errors()[0]["msg"]])
        raise UserError(f"{path} is damaged ({reason}); {how_to_fix(path, 'a JSON file')}") from None


def load_factory(key: str, name: str) -> Callable:
    """Import the function "module:function" that a key of params.yaml names; its module may lie in the project's root.

    Raises UserError, which names the key, if the module cannot be imported or has no such function.
    """
    module, _, function = name.partition(":")
    root = str(paths.root())
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        factory = getattr(import_module(module), function, None)
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything when it is imported
        given = f"{key} is {name!r}, but {module} cannot be imported ({type(error).__name__}: {error})"
        raise UserError(f"{given}; put {module}.py into {root}, or correct it") from None
    if not callable(factory):
        raise UserError(f"{key} is {name!r}, but {module} has no function {function}; correct the name")
    return factory
