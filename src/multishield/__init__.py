"""Multi-Shield: a classifier paired with CLIP that abstains where the two disagree (arXiv 2412.10353)."""

from importlib import import_module

__version__ = "0.1.0"

# Loaded on first use: `import multishield` must not cost the import of torch and open_clip.
_PUBLIC = {
    "Clip": "paper.models.clip",
    "ConfidenceThreshold": "multishield.defences",
    "ConsistentPrediction": "multishield.defences",
    "Defence": "multishield.defences",
    "FeatureSqueezing": "multishield.defences",
    "MultiShield": "multishield.shield",
    "Params": "paper.params",
    "RejectClass": "multishield.defences",
    "Source": "paper.data.datasets",
    "SummedLogProbabilities": "multishield.defences",
    "Unanimity": "multishield.defences",
    "Undefended": "multishield.defences",
    "UserError": "multishield.errors",
    "ZeroShotClassifier": "paper.models.zero_shot",
    "align_classes": "paper.models.zero_shot",
    "calibrate": "multishield.defences",
    "evaluate": "multishield.evaluation",
    "load_alignment": "paper.models.zero_shot",
    "load_classifier": "paper.models.classifier",
    "open_clip_model": "paper.models.clip",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'multishield' has no attribute {name!r}")
