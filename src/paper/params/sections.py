"""Sections of params.yaml, typed: an unknown key or a value out of range is an error."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from paper.params.values import (
    AA_ATTACKS,
    ARCHITECTURES,
    Count,
    Eps,
    Factory,
    Prompt,
    Rate,
    Spread,
    Triple,
    Weight,
    check_dataset,
)


class Section(BaseModel):
    """A section of params.yaml: strict types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ThreatModel(Section):
    """The ball of every attack of the evaluation, see `attacks.threat_model.Ball`."""

    norm: Literal["Linf", "L2"]
    eps: Eps


class Dataset(Section):
    """`name` is one of `DATASETS` or the function of an extension; `resize` is the shorter side before the crop."""

    name: Annotated[str, AfterValidator(check_dataset)]
    root: Annotated[str, Field(min_length=1)]
    image_size: Annotated[int, Field(ge=8, le=1024)]
    resize: Annotated[int, Field(ge=8, le=2048)] | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    train: Annotated[int, Field(ge=0)] | None
    validation: Annotated[int, Field(ge=0)]
    evaluate: Count | None
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
    learning_rate: Rate
    weight_decay: Weight
    augment: bool
    eps: Eps
    warmup_epochs: Annotated[int, Field(ge=0)]
    steps: Count
    step_size: Eps
    beta: Weight = 6.0
    validation_steps: Count


class Checkpoint(Section):
    """A classifier that is loaded from a safetensors state dict."""

    source: Literal["checkpoint"]
    architecture: Literal[ARCHITECTURES]
    path: Annotated[str, Field(min_length=1)]
    mean: Triple
    std: Spread


class Catalogued(Section):
    """A published classifier, by its name in `model_zoo.CATALOGUE`."""

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
    learning_rate: Rate
    weight_decay: Weight = 0.0
    augment: bool = False


class ClassifierFactory(Section):
    """A classifier that an extension builds: "module:function", from pixels in [0,1] to logits."""

    source: Literal["factory"]
    factory: Factory


Classifiers = Trained | Checkpoint | Catalogued | Torchvision | Timm | FineTuned | ClassifierFactory


class RobustTower(Section):
    """Adversarial training of the CLIP's image tower, before it is used."""

    method: Literal["tecoa", "fare"]
    eps: Eps
    steps: Count
    step_size: Eps
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Rate
    weight_decay: Weight = 1e-4
    augment: bool = False
    validation_steps: Count


class Clip(Section):
    """What all sources of a CLIP share: the prompts, and whether the image tower is made robust."""

    prompts: Annotated[list[Prompt], Field(min_length=1)]
    robust: RobustTower | None = None


class ClipTrained(Clip):
    """A small CLIP that the pipeline trains on the data set's image-caption pairs."""

    source: Literal["train"]
    tower: Annotated[str, Field(min_length=1)]
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Rate


class ClipOpen(Clip):
    """A model of open_clip, by name and pretrained tag (or the path of a weights file).

    `image_tower` replaces its image tower: a file, or "hf-hub:owner/name" in the layout of Hugging Face's transformers
    or of open_clip.
    """

    source: Literal["open_clip"]
    model: str
    pretrained: str | None
    image_tower: Annotated[str, Field(min_length=1)] | None = None


class ClipFile(Clip):
    """A CLIP in open_clip's classes from a JSON configuration and a safetensors file."""

    source: Literal["file"]
    config: str
    weights: str
    antialias: bool = True


class ClipFactory(Clip):
    """A CLIP that an extension builds: "module:function", returning a `paper.models.clip.Clip`."""

    source: Literal["factory"]
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


class PartsAttack(Section):
    targets: Count
    steps: Annotated[int, Field(ge=5)]


class DenialAttack(Section):
    steps: Annotated[int, Field(ge=5)]


class SquareAttack(Section):
    queries: Count


class Sanity(Section):
    images: Count


class Adaptive(Section):
    paper: PaperAttack
    joint: JointAttack
    parts: PartsAttack
    denial: DenialAttack
    square: SquareAttack
    sanity: Sanity


class Comparison(Section):
    """Defences at equal clean rejection; `attack` is on each family's strictest member, see `evaluation.comparison`."""

    rejection: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=1)]
    attack: PartsAttack


class PromptSet(Section):
    """What CLIP is told of the classes: templates with {}, or "openai"; and what the classes are called."""

    templates: Literal["openai"] | Annotated[list[Prompt], Field(min_length=1)]
    names: Literal["own", "numbers", "shifted"] = "own"


class Studies(Section):
    """One thing varied at a time, see `evaluation.studies`; `images`: how many, the first of the evaluation images."""

    images: Count
    prompts: Annotated[dict[Annotated[str, Field(min_length=1)], PromptSet], Field(min_length=1)]
    tolerance: Annotated[list[Annotated[float, Field(ge=0, lt=2, allow_inf_nan=False)]], Field(min_length=1)]
    eps: Annotated[list[Eps], Field(min_length=1)]


class Report(Section):
    title: str
    examples: Annotated[int, Field(ge=1, le=12)]
