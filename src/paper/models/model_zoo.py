"""The catalogue: published classifiers by name, with the figures and the setting that they were published with.

Figures of RobustBench are those of its `model_info` files (https://github.com/RobustBench/robustbench), which name the
paper of each model; preprocessing is that of its model zoo.
"""

from dataclasses import dataclass

from multishield.errors import UserError, closest
from paper.params.choices import ByParameter

CLASSES = {"cifar10": 10, "imagenet": 1000}
# Settings: data set; norm and radius, in units of [0,1] pixels; preprocessing: side of the images, shorter side before
# the centre crop (None: not resized), interpolation of that resizing.
CIFAR = ("cifar10", "Linf", 8 / 255, (32, None, None))
CIFAR_L2 = ("cifar10", "L2", 0.5, (32, None, None))
CROPPED = ("imagenet", "Linf", 4 / 255, (224, 256, "bicubic"))
WHOLE = ("imagenet", "Linf", 4 / 255, (224, 224, "bicubic"))


@dataclass(frozen=True)
class Entry:
    """A published classifier, with its setting as above; accuracies in per cent (None: not published)."""

    name: str
    source: str
    dataset: str
    norm: str
    eps: float
    preprocessing: tuple[int, int | None, str | None]
    clean: float
    autoattack: float | None
    reference: str

    @property
    def size(self) -> int:
        """Pixels per side of the images that it takes."""
        return self.preprocessing[0]

    @property
    def classes(self) -> int:
        return CLASSES[self.dataset]


ROBUSTBENCH, PACKAGED = "robustbench", "pyautoattack"
# Name to: source, setting, clean accuracy, AutoAttack accuracy, reference.
ROWS = ByParameter(
    {
        "Standard": (ROBUSTBENCH, CIFAR, 94.78, 0.00, "github.com/RobustBench/robustbench"),
        "Carmon2019Unlabeled": (ROBUSTBENCH, CIFAR, 89.69, 59.53, "arxiv.org/abs/1905.13736"),
        "Gowal2021Improving_70_16_ddpm_100m": (ROBUSTBENCH, CIFAR, 88.74, 66.11, "arxiv.org/abs/2110.09468"),
        # An ensemble of three, which returns the mean of their probabilities: its logits lie in [0,1].
        "Chen2020Adversarial": (ROBUSTBENCH, CIFAR, 86.04, 51.56, "arxiv.org/abs/2003.12862"),
        "Xu2023Exploring_WRN-28-10": (ROBUSTBENCH, CIFAR, 93.69, 63.89, "arxiv.org/abs/2302.03015"),
        "Addepalli2022Efficient_RN18": (ROBUSTBENCH, CIFAR, 85.71, 52.48, "arxiv.org/abs/2210.15318"),
        "Augustin2020Adversarial": (ROBUSTBENCH, CIFAR_L2, 91.08, 72.91, "arxiv.org/abs/2003.09461"),
        "Debenedetti2022Light_XCiT-S12": (ROBUSTBENCH, WHOLE, 72.34, 41.78, "arxiv.org/abs/2209.07399"),
        "Singh2023Revisiting_ConvNeXt-L-ConvStem": (ROBUSTBENCH, CROPPED, 77.00, 57.70, "arxiv.org/abs/2303.01870"),
        "Singh2023Revisiting_ViT-B-ConvStem": (ROBUSTBENCH, CROPPED, 76.30, 54.66, "arxiv.org/abs/2303.01870"),
        "Singh2023Revisiting_ConvNeXt-B-ConvStem": (ROBUSTBENCH, CROPPED, 75.90, 56.14, "arxiv.org/abs/2303.01870"),
        # The leaderboard's figures; another version of its model_info file (commit a4e51d9) has 75.34 and 54.16.
        "Liu2023Comprehensive_Swin-B": (ROBUSTBENCH, CROPPED, 76.16, 56.16, "arxiv.org/abs/2302.14301"),
        # The network that AutoAttack's authors ship with their examples: trained plainly, pixels in [0,1] as they are.
        "AutoAttack-ResNet18": (PACKAGED, CIFAR, 94.00, 0.00, "github.com/fra31/auto-attack"),
    }
)
# What the paper reports of the classifiers that it fine-tunes, by model and data set: clean accuracy alone.
_PAPER = "https://arxiv.org/abs/2412.10353"
FINETUNED = {
    ("resnet18", data): Entry(
        f"resnet18 on {data}", "finetune", data, "Linf", 8 / 255, (224, None, None), clean, None, _PAPER
    )
    for data, clean in (("caltech101", 91.88), ("stl10", 95.25), ("pets", 87.74))
}
# Data sets whose classes differ in size: drawing equally many of each is another mean than that of the whole test set.
UNBALANCED = {"caltech101", "pathmnist"}


def find(key: str, name: str) -> Entry:
    """The entry of a name, which the `key` of params.yaml holds. Raises UserError if there is none."""
    if name not in ROWS:
        ending = closest(name, ROWS, f"accepted are {', '.join(ROWS)}")
        raise UserError(f"{key} is {name!r}, which is not in the catalogue; {ending}")
    source, setting, clean, autoattack, reference = ROWS[name]
    return Entry(name, source, *setting, clean, autoattack, f"https://{reference}")


CATALOGUE = {name: find("name", name) for name in ROWS}


def own_images(dataset: str) -> bool:
    """Whether a data set is a folder or an extension of one's own: what it holds is not known."""
    return dataset == "folder" or ":" in dataset


def check(params) -> None:
    """Every catalogued classifier of the parameters exists, and is one for the data set.

    What a folder or an extension holds is not known: there only the number of classes is compared, when it is loaded.

    Raises UserError for an unknown name, or a classifier of another data set.
    """
    for name in params.classifiers:
        described = params.training[name]
        if described.source != "catalogue":
            continue
        entry = find(f"training.{name}.name", described.name)
        if not own_images(params.dataset.name) and params.dataset.name != entry.dataset:
            raise UserError(
                f"training.{name}.name is {entry.name!r}, a classifier of {entry.dataset}, but dataset.name is "
                f"{params.dataset.name!r}; use that data set, or one of your own with the same classes in that order"
            )
