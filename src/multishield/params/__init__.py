"""params.yaml: values, sections, the experiment, and one clear sentence for each mistake."""

from multishield.params.experiment import Params, parse_yaml, read_yaml
from multishield.params.sections import (
    Adaptive,
    Baseline,
    Catalogued,
    Checkpoint,
    ClassifierFactory,
    Classifiers,
    ClipFactory,
    ClipFile,
    ClipOpen,
    ClipTrained,
    Comparison,
    Dataset,
    FineTuned,
    RobustTower,
    Timm,
    Torchvision,
    Trained,
)
from multishield.params.values import parse_eps

__all__ = [
    "Adaptive",
    "Baseline",
    "Catalogued",
    "Checkpoint",
    "ClassifierFactory",
    "Classifiers",
    "ClipFactory",
    "ClipFile",
    "ClipOpen",
    "ClipTrained",
    "Comparison",
    "Dataset",
    "FineTuned",
    "Params",
    "RobustTower",
    "Timm",
    "Torchvision",
    "Trained",
    "parse_eps",
    "parse_yaml",
    "read_yaml",
]
