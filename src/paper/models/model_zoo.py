"""The model zoo: published classifiers by name, with their setting and the figures of RobustBench's `model_info`."""

from dataclasses import dataclass

from multishield.errors import UserError, closest

# Settings: data set and its number of classes; norm and radius, in units of [0,1] pixels; preprocessing: side of the
# images, shorter side before the centre crop (None: not resized), interpolation of that resizing.
CIFAR = ("cifar10", 10, "Linf", 8 / 255, (32, None, None))
CIFAR_L2 = ("cifar10", 10, "L2", 0.5, (32, None, None))
CROPPED = ("imagenet", 1000, "Linf", 4 / 255, (224, 256, "bicubic"))
WHOLE = ("imagenet", 1000, "Linf", 4 / 255, (224, 224, "bicubic"))


@dataclass(frozen=True)
class Entry:
    """A published classifier with its setting; accuracies in per cent."""

    name: str
    source: str
    reference: str
    clean: float
    autoattack: float
    dataset: str
    classes: int
    norm: str
    eps: float
    preprocessing: tuple[int, int | None, str | None]


BENCH, PACKAGED = "robustbench", "pyautoattack"
# Name, package, reference, clean accuracy, AutoAttack accuracy, setting.
ROWS = (
    ("Standard", BENCH, "github.com/RobustBench/robustbench", 94.78, 0.00, CIFAR),
    ("Carmon2019Unlabeled", BENCH, "arxiv.org/abs/1905.13736", 89.69, 59.53, CIFAR),
    ("Gowal2021Improving_70_16_ddpm_100m", BENCH, "arxiv.org/abs/2110.09468", 88.74, 66.11, CIFAR),
    # An ensemble of three, which returns the mean of their probabilities: its logits lie in [0,1].
    ("Chen2020Adversarial", BENCH, "arxiv.org/abs/2003.12862", 86.04, 51.56, CIFAR),
    ("Xu2023Exploring_WRN-28-10", BENCH, "arxiv.org/abs/2302.03015", 93.69, 63.89, CIFAR),
    ("Addepalli2022Efficient_RN18", BENCH, "arxiv.org/abs/2210.15318", 85.71, 52.48, CIFAR),
    ("Augustin2020Adversarial", BENCH, "arxiv.org/abs/2003.09461", 91.08, 72.91, CIFAR_L2),
    ("Debenedetti2022Light_XCiT-S12", BENCH, "arxiv.org/abs/2209.07399", 72.34, 41.78, WHOLE),
    ("Singh2023Revisiting_ConvNeXt-L-ConvStem", BENCH, "arxiv.org/abs/2303.01870", 77.00, 57.70, CROPPED),
    ("Singh2023Revisiting_ViT-B-ConvStem", BENCH, "arxiv.org/abs/2303.01870", 76.30, 54.66, CROPPED),
    ("Singh2023Revisiting_ConvNeXt-B-ConvStem", BENCH, "arxiv.org/abs/2303.01870", 75.90, 56.14, CROPPED),
    # The leaderboard's figures; another version of its model_info file (commit a4e51d9) has 75.34 and 54.16.
    ("Liu2023Comprehensive_Swin-B", BENCH, "arxiv.org/abs/2302.14301", 76.16, 56.16, CROPPED),
    # The network that AutoAttack's authors ship with their examples: trained plainly, pixels in [0,1] as they are.
    ("AutoAttack-ResNet18", PACKAGED, "github.com/fra31/auto-attack", 94.00, 0.00, CIFAR),
)
ENTRIES = {name: Entry(name, source, *figures, *setting) for name, source, *figures, setting in ROWS}


def check_name(key: str, name: str, known, owner: str, listing: str) -> None:
    """Raises UserError if a name is not known to its `owner`; `listing` says how to see the known ones."""
    if name not in known:
        raise UserError(f"{key} is {name!r}, which {owner} does not know; {closest(name, known, listing)}")


def find(key: str, name: str) -> Entry:
    """The entry of a name, which a key of params.yaml holds. Raises UserError if there is none."""
    check_name(key, name, ENTRIES, "the model zoo", f"accepted are {', '.join(ENTRIES)}")
    return ENTRIES[name]


def check(params) -> None:
    """Raises UserError if a classifier's name is unknown, or if it is for another data set than the experiment's."""
    for name in params.classifiers:
        section, key = params.training[name], f"training.{name}.name"
        entry = find(key, section.name) if section.source == "model_zoo" else None
        if entry and not params.dataset.own and params.dataset.name != entry.dataset:
            given = f"{key} is {entry.name!r}, a classifier of {entry.dataset}"
            remedy = "use that data set, or one of your own with the same classes in that order"
            raise UserError(f"{given}, but dataset.name is {params.dataset.name!r}; {remedy}")
