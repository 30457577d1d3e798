"""Hugging Face's cache in a temporary folder, without a network, and small CLIPs in it."""

import json
from pathlib import Path

import huggingface_hub
import open_clip
from safetensors.torch import save_file

VISION = {"image_size": 32, "patch_size": 8, "width": 128, "layers": 2, "mlp_ratio": 2.0}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
NORMAL = {"mean": [0.5] * 3, "std": [0.25] * 3}
CONFIG = {"embed_dim": 48, "vision_cfg": VISION, "text_cfg": TEXT, "preprocess_cfg": {"size": 32, **NORMAL}}


def offline(monkeypatch, root: Path) -> None:
    """From now on the hub is what lies in `root`."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def repository(root: Path, name: str) -> Path:
    """The folder for a repository's files in the cache."""
    folder = root / f"models--{name.replace('/', '--')}"
    (folder / "snapshots" / "0").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0")
    return folder / "snapshots" / "0"


def small_clip(quick_gelu=True, **vision) -> open_clip.CLIP:
    """A small CLIP of open_clip with random weights."""
    return open_clip.CLIP(48, {**VISION, **vision}, dict(TEXT), quick_gelu=quick_gelu).eval()


def put_clip(root: Path, name: str, weights: bool = True) -> dict:
    """Put a small CLIP with CLIPA's mean and std into the cache, or its configuration alone; returns its weights."""
    folder, state = repository(root, name), small_clip().state_dict()
    model = {"embed_dim": 48, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}
    preprocess = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "resize_mode": "squash"}
    config = {"model_cfg": model, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if weights:
        save_file(state, folder / "open_clip_model.safetensors")
    return state
