"""Multi-Shield: a classifier paired with CLIP that abstains where the two disagree (arXiv 2412.10353).

The shield, other defences that abstain, their attacks, and their evaluation in one call. Every name in
`multishield.__all__` has a page of the manual: `help(multishield.evaluate)`.
"""

from importlib import import_module

__version__ = "0.2.0"

# Module -> its names. Loaded on first use: `import multishield` must not cost the import of torch.
_CONTENTS = {
    "attacks.apgd": "apgd",
    "attacks.components": "denial one_margin",
    "attacks.joint": "joint",
    "attacks.paper": "paper_attack",
    "attacks.pgd": "fgsm pgd",
    "attacks.square": "square",
    "attacks.threat_model": "Ball",
    "budget": "Budget",
    "certification": "Smoothed certified_curve certify",
    "clip": "open_clip_model",
    "defences": "ConfidenceThreshold ConsistentPrediction Defence FeatureSqueezing RejectClass SummedLogProbabilities"
    " Unanimity Undefended calibrate",
    "errors": "UserError",
    "evaluation": "Evaluation evaluate",
    "images": "AttackedImages Images StoredImages",
    "records": "decide",
    "shield": "MultiShield",
    "zero_shot": "Clip ZeroShotClassifier align_classes",
}
_MODULE_OF = {name: module for module, names in _CONTENTS.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(import_module(f"multishield.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'multishield' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
