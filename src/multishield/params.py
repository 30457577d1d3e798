"""`params.yaml`, read once, typed and checked. An unknown key or a value out of range is an error."""

import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from multishield import paths
from multishield.errors import UserError
from multishield.messages import sentences

AA_ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
DATASETS = (
    "shapes",
    "folder",
    "cifar10",
    "imagenet",
    "stl10",
    "caltech101",
    "food101",
    "pets",
    "eurosat",
    "pathmnist",
)
ARCHITECTURES = ("resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet18")


def parse_eps(value) -> float:
    """Read a perturbation size given as "8/255" or as a number, in units of the [0,1] pixel range.

    Raises:
        ValueError: not a number, or not strictly between 0 and 1 (8 instead of 8/255 is the classic slip).
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError('must be a fraction such as "8/255" or a number between 0 and 1')
    try:
        eps = float(Fraction(str(value).replace(" ", "")))
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


def _dataset(value: str) -> str:
    if value not in DATASETS and ":" not in value:
        raise ValueError(f'it should be {", ".join(DATASETS)}, or an extension\'s "module:function"')
    return value if value in DATASETS else _factory(value)


Eps = Annotated[float, BeforeValidator(parse_eps)]
Factory = Annotated[str, AfterValidator(_factory)]
Prompt = Annotated[str, AfterValidator(_prompt)]
Name = Annotated[str, AfterValidator(_name)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Triple = Annotated[list[float], Field(min_length=3, max_length=3)]
Spread = Annotated[list[Positive], Field(min_length=3, max_length=3)]


class Section(BaseModel):
    """A section of params.yaml: strict types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ThreatModel(Section):
    norm: Literal["Linf"]
    eps: Eps


class Dataset(Section):
    """`name` is one of `DATASETS` or the function of an extension; `resize` is the shorter side before the crop."""

    name: Annotated[str, AfterValidator(_dataset)]
    root: Annotated[str, Field(min_length=1)]
    image_size: Annotated[int, Field(ge=8, le=1024)]
    resize: Annotated[int, Field(ge=8, le=2048)] | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    train: Annotated[int, Field(ge=0)] | None
    validation: Annotated[int, Field(ge=0)]
    evaluate: Count
    order: Literal["stratified", "first"]


class Trained(Section):
    """A classifier that the pipeline trains."""

    source: Literal["train"]
    architecture: Literal[ARCHITECTURES]
    method: Literal["standard", "fgsm", "pgd", "trades"]
    mean: Triple
    std: Spread
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    augment: bool
    eps: Eps
    warmup_epochs: Annotated[int, Field(ge=0)]
    steps: Count
    step_size: Eps
    beta: Annotated[float, Field(ge=0)] = 6.0
    validation_steps: Count


class Checkpoint(Section):
    """A classifier that is loaded from a safetensors state dict."""

    source: Literal["checkpoint"]
    architecture: Literal[ARCHITECTURES]
    path: Annotated[str, Field(min_length=1)]
    mean: Triple
    std: Spread


class Catalogued(Section):
    """A published classifier, by its name in `catalogue.CATALOGUE`."""

    source: Literal["catalogue"]
    name: Annotated[str, Field(min_length=1)]


class Torchvision(Section):
    """A torchvision model by name, with a tag of its weights ("IMAGENET1K_V1", "DEFAULT") or a safetensors file."""

    source: Literal["torchvision"]
    model: Annotated[str, Field(min_length=1)]
    weights: Annotated[str, Field(min_length=1)]


class Timm(Section):
    """A timm model by name ("resnet18.a1_in1k"), with its own weights or those of a safetensors file."""

    source: Literal["timm"]
    model: Annotated[str, Field(min_length=1)]
    weights: Annotated[str, Field(min_length=1)] | None = None


class FineTuned(Section):
    """A torchvision model whose layers are all trained on the data set, from published weights.

    `weights` is a tag of torchvision, a safetensors file, or null for random ones.
    """

    source: Literal["finetune"]
    model: Annotated[str, Field(min_length=1)]
    weights: Annotated[str, Field(min_length=1)] | None
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    augment: bool = False


class ClassifierFactory(Section):
    """A classifier that an extension builds: "module:function", from pixels in [0,1] to logits."""

    source: Literal["factory"]
    factory: Factory


Classifiers = Trained | Checkpoint | Catalogued | Torchvision | Timm | FineTuned | ClassifierFactory


class ClipTrained(Section):
    """A small CLIP that the pipeline trains on the data set's image-caption pairs."""

    source: Literal["train"]
    prompts: Annotated[list[Prompt], Field(min_length=1)]
    tower: Annotated[str, Field(min_length=1)]
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Positive


class ClipOpen(Section):
    """A model of open_clip, by name and pretrained tag (or the path of a weights file).

    `image_tower` replaces its image tower: a file, or "hf-hub:owner/name" in the layout of Hugging Face's transformers
    or of open_clip.
    """

    source: Literal["open_clip"]
    prompts: Annotated[list[Prompt], Field(min_length=1)]
    model: str
    pretrained: str | None
    image_tower: Annotated[str, Field(min_length=1)] | None = None


class ClipFile(Section):
    """A CLIP in open_clip's classes from a JSON configuration and a safetensors file."""

    source: Literal["file"]
    prompts: Annotated[list[Prompt], Field(min_length=1)]
    config: str
    weights: str
    antialias: bool = True


class ClipFactory(Section):
    """A CLIP that an extension builds: "module:function", returning a `clips.Clip`."""

    source: Literal["factory"]
    prompts: Annotated[list[Prompt], Field(min_length=1)]
    factory: Factory


Clips = ClipTrained | ClipOpen | ClipFile | ClipFactory
SOURCES = {
    tag
    for section in get_args(Classifiers) + get_args(Clips)
    for tag in get_args(section.model_fields["source"].annotation)
}


class Baseline(Section):
    attacks: Literal["standard"] | Annotated[list[Literal[AA_ATTACKS]], Field(min_length=1)]
    batch_size: Count


class Shield(Section):
    tolerance: Annotated[float, Field(ge=0, lt=2, allow_inf_nan=False)]


class PaperAttack(Section):
    steps: Annotated[int, Field(ge=5)]


class JointAttack(Section):
    targets: Count
    steps: Count
    restarts: Count


class AlignmentAttack(Section):
    steps: Annotated[int, Field(ge=5)]


class SquareAttack(Section):
    queries: Count


class Sanity(Section):
    images: Count


class Adaptive(Section):
    paper: PaperAttack
    joint: JointAttack
    alignment: AlignmentAttack
    square: SquareAttack
    sanity: Sanity


class Report(Section):
    title: str
    examples: Annotated[int, Field(ge=1, le=12)]


class Params(Section):
    """Everything that an experiment depends on: one attribute per section of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    classifiers: Annotated[list[Name], Field(min_length=1)]
    threat_model: ThreatModel
    dataset: Dataset
    training: dict[Name, Annotated[Classifiers, Field(discriminator="source")]]
    alignment: Annotated[Clips, Field(discriminator="source")]
    baseline: Baseline
    multishield: Shield
    adaptive: Adaptive
    report: Report

    @model_validator(mode="after")
    def _classifiers_are_described(self):
        unknown = [name for name in self.classifiers if name not in self.training]
        if unknown:
            raise ValueError(
                f"classifiers: {unknown[0]!r} is not described under training; known: {', '.join(self.training)}"
            )
        if len(set(self.classifiers)) != len(self.classifiers):
            raise ValueError(f"classifiers: {self.classifiers} names one twice")
        if self.alignment.source == "train" and self.dataset.name != "shapes":
            raise ValueError(
                "alignment.source: 'train' needs captions, which only the shapes data set has; "
                "use 'open_clip' or 'file'"
            )
        return self

    @model_validator(mode="after")
    def _the_crop_fits_into_the_image(self):
        size, resize = self.dataset.image_size, self.dataset.resize
        if resize is not None and resize < size:
            raise ValueError(
                f"dataset.resize is {resize}, but the centre crop of dataset.image_size = {size} must fit into it; "
                f"use {size} or more, such as 256 for a crop of 224"
            )
        return self

    @classmethod
    def load(cls, path: Path | None = None) -> "Params":
        """Read and check `params.yaml` (of the project that the working directory is in, unless `path` is given).

        Raises:
            UserError: a sentence per mistake, each naming the key, the value and what is accepted.
        """
        path = path or paths.root() / "params.yaml"
        return cls.parse(read_yaml(path), path.name)

    @classmethod
    def parse(cls, values, source: str = "params.yaml") -> "Params":
        """Check values that were read from a file called `source`."""
        if not isinstance(values, dict):
            raise UserError(f"{source} must hold the sections {', '.join(cls.model_fields)}; see profiles/demo.yaml")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError("\n".join(f"{source}: {s}" for s in sentences(error.errors(), SOURCES))) from None


def read_yaml(path: Path):
    """Read a YAML 1.2 file (where 1e-3 is a number).

    Raises:
        UserError: the file is missing or is not YAML.
    """
    try:
        return YAML(typ="safe", pure=True).load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; copy a preset there, for example profiles/demo.yaml") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from None
