"""Multi-Shield: a classifier paired with CLIP that abstains where the two disagree (arXiv 2412.10353)."""

from importlib import import_module

__version__ = "0.1.0"

# Loaded on first use: `import multishield` must not cost the import of torch and open_clip.
_PUBLIC = {
    "Clip": "models.clip",
    "ConfidenceThreshold": "defences",
    "ConsistentPrediction": "defences",
    "Defence": "defences",
    "FeatureSqueezing": "defences",
    "MultiShield": "shield",
    "Params": "params",
    "RejectClass": "defences",
    "Source": "data.datasets",
    "SummedLogProbabilities": "defences",
    "Unanimity": "defences",
    "Undefended": "defences",
    "UserError": "storage.errors",
    "ZeroShotClassifier": "models.zero_shot",
    "align_classes": "models.zero_shot",
    "calibrate": "defences",
    "evaluate": "evaluator",
    "load_alignment": "models.zero_shot",
    "load_classifier": "models.classifier",
    "open_clip_model": "models.clip",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f"multishield.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'multishield' has no attribute {name!r}")
