"""Values of params.yaml: what a radius, a prompt, a name, a count may be."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from multishield.errors import UserError

AA_ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
# AutoAttack's version of that name.
AA_STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
# Classes that a loss needs (Croce & Hein 2020: the third and fourth largest logit are in it).
NEEDED = {"apgd-dlr": 3, "apgd-t": 4}
DATASETS = ("shapes", "folder", "cifar10", "imagenet", "stl10", "caltech101", "food101", "pets", "eurosat", "pathmnist")
STUDIES = ("prompts", "tolerance", "eps")  # what is varied, see `evaluation.studies`
ARCHITECTURES = ("resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet18")


def parse_eps(value) -> float:
    """Read a perturbation size given as "8/255" or as a number, in units of the [0,1] pixel range.

    Raises:
        ValueError: not a number, or not strictly between 0 and 1 (8 instead of 8/255 is the classic slip).
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError('must be a fraction such as "8/255" or a number between 0 and 1')
    above, slash, below = str(value).partition("/")
    try:
        eps = float(above) / float(below) if slash else float(above)  # floats: Fraction("1e-99999999") takes for ever
    except (ValueError, ZeroDivisionError):
        raise ValueError('must be a fraction such as "8/255" or a number between 0 and 1') from None
    if not 0 < eps < 1:
        raise ValueError('must lie strictly between 0 and 1, because pixels are in [0,1]: write "8/255", not 8')
    return eps


def _prompt(template: str) -> str:
    if re.sub(r"\{\}", "", template, count=1).count("{") or template.count("{}") != 1 or template.count("}") != 1:
        raise ValueError('must hold the placeholder {} exactly once and no other braces, as "this is a photo of a {}"')
    return template


def _name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError("must be made of letters, digits, _ and -, because it names a stage and a folder")
    return name


def _factory(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        raise ValueError('must name a function as "module:function", such as "mine:flowers" for flowers() in mine.py')
    return value


def check_dataset(value: str) -> str:
    if value not in DATASETS and ":" not in value:
        raise ValueError(f'it should be {", ".join(DATASETS)}, or an extension\'s "module:function"')
    return value if value in DATASETS else _factory(value)


def check_attacks(attacks: tuple[str, ...], classes: int) -> None:
    """See that every attack of AutoAttack fits the number of classes.

    Raises:
        UserError: one does not.
    """
    for name in attacks:
        if classes < NEEDED.get(name, 0):
            raise UserError(
                f"baseline.attacks holds {name}, whose loss needs {NEEDED[name]} classes; the data set has {classes}: "
                "write attacks: [apgd-ce, fab, square], which are AutoAttack's for so few"
            )


Eps = Annotated[float, BeforeValidator(parse_eps)]
Factory = Annotated[str, AfterValidator(_factory)]
Prompt = Annotated[str, AfterValidator(_prompt)]
Name = Annotated[str, AfterValidator(_name)]
Count = Annotated[int, Field(ge=1)]
# Beyond these bounds float32 overflows within a few steps.
Rate = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
# Of pixels in [0,1]: numbers of a 0..255 scale would make every image black.
Triple = Annotated[list[Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]], Field(min_length=3, max_length=3)]
Spread = Annotated[list[Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]], Field(min_length=3, max_length=3)]
