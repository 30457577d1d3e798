"""Multi-Shield: a classifier paired with CLIP that abstains where the two disagree (arXiv 2412.10353)."""

from importlib import import_module

__version__ = "0.1.0"

# Loaded on first use: `import multishield` must not cost the import of torch and open_clip.
_PUBLIC = {
    "Alignment": "alignment",
    "Clip": "clips",
    "MultiShield": "shield",
    "Params": "params",
    "Source": "sources",
    "UserError": "errors",
    "align_classes": "alignment",
    "load_alignment": "alignment",
    "load_classifier": "classifiers",
    "open_clip_model": "clips",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f"multishield.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'multishield' has no attribute {name!r}")
