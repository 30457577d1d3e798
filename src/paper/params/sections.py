"""Sections of params.yaml, typed: an unknown key or a value out of range is an error."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from multishield.budget import Joint
from paper.params.values import AA_ATTACKS, ARCHITECTURES, DATASETS, FAMILIES, matching, parse_eps

FUNCTION = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
Name = matching("[A-Za-z0-9][A-Za-z0-9_-]*", "must be made of letters, digits, _ and -: a stage and a folder get it")
Factory = matching(FUNCTION, 'must name a function as "module:function", such as "mine:flowers" for flowers in mine.py')
DatasetName = matching(
    "|".join((*DATASETS, FUNCTION)), f'it should be {", ".join(DATASETS)}, or an extension\'s "module:function"'
)
Prompt = matching(r"[^{}]*{}[^{}]*", 'must hold {} exactly once and no other braces, as "this is a photo of a {}"')
Prompts = Annotated[list[Prompt], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Eps = Annotated[float, BeforeValidator(parse_eps)]
Tolerance = Annotated[float, Field(ge=0, lt=2)]
# Beyond these bounds float32 overflows within a few steps.
Rate = Annotated[float, Field(gt=0, le=1000)]
Weight = Annotated[float, Field(ge=0, le=1000)]
# Pixels are in [0,1]: a mean or deviation on a scale of 0 to 255 would make every image black.
Mean = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)]
Std = Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=3, max_length=3)]


class Section(BaseModel, extra="forbid", strict=True, frozen=True, allow_inf_nan=False):
    """A section of params.yaml: strict types, no unknown keys."""


class ThreatModel(Section):
    norm: Literal["Linf", "L2"]
    eps: Eps


class Dataset(Section):
    name: DatasetName
    root: Text
    image_size: Annotated[int, Field(ge=8, le=1024)]
    resize: Annotated[int, Field(ge=8, le=2048)] | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    train: Whole | None
    validation: Whole
    calibration: Whole
    evaluate: Count | None
    order: Literal["stratified", "first"]
    own = property(lambda self: self.name == "folder" or ":" in self.name)  # images whose origin is not known


class Fit(Section):
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Rate


class AdversarialFit(Fit):
    """A training with an attack of radius `eps`, by which the epoch is chosen on validation images, too."""

    eps: Eps
    steps: Count
    step_size: Eps
    warmup_epochs: Whole = 0
    weight_decay: Weight = 1e-4
    augment: bool = False
    sigma: Eps = 0.1  # of noise
    validation_steps: Count


class Network(Section):
    architecture: Literal[ARCHITECTURES]
    mean: Mean
    std: Std


class Trained(AdversarialFit, Network):
    """A classifier that the pipeline trains."""

    source: Literal["train"]
    method: Literal["standard", "fgsm", "pgd", "trades", "noise"]
    beta: Weight = 6.0


class Checkpoint(Network):
    """A classifier that is loaded from a safetensors state dict."""

    source: Literal["checkpoint"]
    path: Text


class FromZoo(Section):
    """A published classifier, by its name in `paper.models.model_zoo`."""

    source: Literal["model_zoo"]
    name: Text


class Torchvision(Section):
    """A torchvision model. The weights are a tag ("IMAGENET1K_V1", "DEFAULT") or a safetensors file."""

    source: Literal["torchvision"]
    model: Text
    weights: Text


class FineTuned(Fit):
    """A torchvision model whose layers are all trained on the data set. Null weights are random ones."""

    source: Literal["finetune"]
    model: Text
    weights: Text | None
    weight_decay: Weight = 0.0
    augment: bool = False


class ClassifierFactory(Section):
    """A classifier that an extension builds: "module:function", from pixels in [0,1] to logits."""

    source: Literal["factory"]
    factory: Factory


Classifiers = Trained | Checkpoint | FromZoo | Torchvision | FineTuned | ClassifierFactory


class RobustTower(AdversarialFit):
    """Adversarial training of the CLIP's image tower, or on noise, before it is used."""

    method: Literal["tecoa", "fare", "noise"]


class Clip(Section):
    """The keys of a CLIP of any source: its prompts, and the adversarial training of its image tower."""

    prompts: Prompts
    robust: RobustTower | None = None


class ClipTrained(Clip, Fit):
    """A small CLIP that the pipeline trains on images and captions: the data set's own, or prompts with class names."""

    source: Literal["train"]
    augment: bool = False
    tower: Literal[ARCHITECTURES]


class ClipOpen(Clip):
    """A model of open_clip. `pretrained` is a tag or a file; `image_tower` a file or "hf-hub:owner/name"."""

    source: Literal["open_clip"]
    model: str
    pretrained: str | None
    image_tower: Text | None = None


class ClipFile(Clip):
    """A CLIP in open_clip's classes from a JSON configuration and a safetensors file."""

    source: Literal["file"]
    config: str
    weights: str
    antialias: bool = True


class ClipFactory(Clip, ClassifierFactory):
    """A CLIP that an extension builds: "module:function" returns a `multishield.Clip`."""


Clips = ClipTrained | ClipOpen | ClipFile | ClipFactory


class Baseline(Section):
    attacks: Literal["standard"] | Annotated[list[Literal[AA_ATTACKS]], Field(min_length=1)]
    batch_size: Count


class Shield(Section):
    tolerance: Tolerance


class Comparison(Section, strict=False):
    """Families of defences at every clean rejection from 0 to `rejection`, each attacked at its strictest."""

    rejection: Annotated[float, Field(gt=0, lt=1, strict=True)]
    primary: Literal[FAMILIES[1:]]
    cpr: Annotated[bool, Field(strict=True)] = False
    attack: Joint


class PromptSet(Section):
    templates: Literal["openai"] | Prompts
    names: Literal["own", "numbers", "shifted"] = "own"


class Studies(Section):
    """The values of each study, on the first `images` of the evaluation images."""

    images: Count
    prompts: Annotated[dict[Text, PromptSet], Field(min_length=1)]
    tolerance: Annotated[list[Tolerance], Field(min_length=1)]
    eps: Annotated[list[Eps], Field(min_length=1)]
    sigma: Annotated[list[Eps], Field(min_length=1)]


class Report(Section):
    title: str
    examples: Annotated[int, Field(ge=1, le=12)]
