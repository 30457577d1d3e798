"""Multi-Shield: a classifier paired with CLIP that abstains where the two disagree (arXiv 2412.10353).

The shield, other defences that abstain, their attacks, and their evaluation in one call. `help(multishield.evaluate)`
is a page of the manual, and so is every other name in `multishield.__all__`.
"""

from importlib import import_module

__version__ = "0.2.0"

# Name -> its module. Loaded on first use: `import multishield` must not cost the import of torch.
_CONTENTS = {
    "AttackedImages": "images",
    "Ball": "attacks.threat_model",
    "Budget": "budget",
    "Clip": "zero_shot",
    "ConfidenceThreshold": "defences",
    "ConsistentPrediction": "defences",
    "Defence": "defences",
    "Evaluation": "evaluation",
    "FeatureSqueezing": "defences",
    "Images": "images",
    "MultiShield": "shield",
    "RejectClass": "defences",
    "StoredImages": "images",
    "SummedLogProbabilities": "defences",
    "Unanimity": "defences",
    "Undefended": "defences",
    "UserError": "errors",
    "ZeroShotClassifier": "zero_shot",
    "align_classes": "zero_shot",
    "apgd": "attacks.apgd",
    "calibrate": "defences",
    "denial": "attacks.components",
    "evaluate": "evaluation",
    "fgsm": "attacks.pgd",
    "joint": "attacks.joint",
    "one_margin": "attacks.components",
    "open_clip_model": "clip",
    "paper_attack": "attacks.paper",
    "pgd": "attacks.pgd",
    "square": "attacks.square",
}
__all__ = sorted(_CONTENTS)


def __getattr__(name: str):
    if name in _CONTENTS:
        return getattr(import_module(f"multishield.{_CONTENTS[name]}"), name)
    raise AttributeError(f"module 'multishield' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
