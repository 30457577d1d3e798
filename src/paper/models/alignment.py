"""The files of the alignment stage: text embeddings, the CLIP or its source, and a robust image tower."""

from pathlib import Path

from pydantic import TypeAdapter
from torch import Tensor

from multishield.files import load_tensors, read_json, save_tensors, write_json
from multishield.forward import device, freeze
from multishield.zero_shot import Clip, ZeroShotClassifier, align
from paper import paths
from paper.models.cifar_resnet import load_exactly
from paper.models.clip import build_clip, load_clip
from paper.params.sections import Clips


def save_alignment(clip: Clip, params: Clips, config: dict | None, text: Tensor, folder: Path) -> None:
    """Write text embeddings (K,D), and the weights that were made here: a trained CLIP's, or a robust tower's.

    `config` is the configuration of a CLIP that was trained here, else None. SigLIP's bias is left out: it is the same
    for all classes, so it changes neither cosines nor a softmax.
    """
    save_tensors(folder / "text.safetensors", {"text": text, "scale": clip.model.logit_scale.exp().detach().reshape(1)})
    if params.source == "train":
        save_tensors(folder / "clip.safetensors", clip.model.state_dict())
    elif params.robust:
        save_tensors(folder / "tower.safetensors", clip.model.visual.state_dict())
    record = {"params": params.model_dump(), "config": config}
    record |= {"preprocessing": vars(clip.preprocessing), "antialias": clip.antialias}
    write_json(folder / "clip.json", record)


def load_alignment() -> ZeroShotClassifier:
    """The zero-shot classifier of the alignment stage, frozen, on the best device."""
    text = load_tensors(paths.artifacts("alignment", "text.safetensors"))["text"]
    return freeze(align(load_pipeline_clip(), text)).to(device())


def load_pipeline_clip() -> Clip:
    """The CLIP of the alignment stage, both towers, frozen."""
    folder = paths.artifacts("alignment")
    record = read_json(folder / "clip.json")
    if record["params"]["source"] == "train":
        clip = build_clip(record["config"], record["antialias"])
        load_exactly(clip.model, load_tensors(folder / "clip.safetensors"), str(folder))
    else:
        clip = load_clip(TypeAdapter(Clips).validate_python(record["params"]))
        if record["params"]["robust"]:
            load_exactly(clip.model.visual, load_tensors(folder / "tower.safetensors"), str(folder))
    freeze(clip.model)
    return clip
