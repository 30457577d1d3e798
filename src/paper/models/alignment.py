"""What the alignment stage keeps of a CLIP. An attack needs the image tower, and not open_clip, slow to import."""

from pathlib import Path
from types import SimpleNamespace

from torch import Tensor
from torch.fx.experimental.optimization import fuse

from multishield.errors import UserError
from multishield.files import load_tensors, save_tensors, write_json
from multishield.forward import device, freeze
from multishield.zero_shot import Clip, Preprocess, ZeroShotClassifier, align
from paper import paths
from paper.models.cifar_resnet import build_network, load_exactly
from paper.params.sections import Clips
from paper.params.values import stored


def save_alignment(clip: Clip, params: Clips, text: Tensor, folder: Path) -> None:
    """Write text embeddings (K,D), and the weights that were made here: a trained CLIP's, or a robust tower's.

    SigLIP's bias is left out: it is the same for all classes, so it changes neither cosines nor a softmax.
    """
    save_tensors(folder / "text.safetensors", {"text": text, "scale": clip.model.logit_scale.exp().detach().reshape(1)})
    if params.source == "train":
        save_tensors(folder / "clip.safetensors", clip.model.state_dict())
    elif params.robust:
        save_tensors(folder / "tower.safetensors", clip.model.visual.state_dict())
    record = {"params": params.model_dump(), "preprocessing": vars(clip.preprocessing), "antialias": clip.antialias}
    write_json(folder / "clip.json", record | {"files": paths.files_of("alignment", params)})


def load_alignment() -> ZeroShotClassifier:
    """The zero-shot classifier of the alignment stage, frozen, on the best device."""
    folder, record = paths.artifacts("alignment"), _record()
    text = load_tensors(folder / "text.safetensors")["text"]
    if record.params.source != "train":
        return freeze(align(load_pipeline_clip(), text)).to(device())
    tower, weights = build_network(record.params.tower, text.shape[1]), load_tensors(folder / "clip.safetensors")
    load_exactly(tower, {k[7:]: weight for k, weight in weights.items() if k.startswith("visual.")}, str(folder))
    preprocess = Preprocess(SimpleNamespace(**record.preprocessing), record.antialias)
    return freeze(ZeroShotClassifier(fuse(tower.eval()), preprocess, text)).to(device())


def load_pipeline_clip() -> Clip:
    """The CLIP of the alignment stage, both towers, frozen. Raises UserError if its files were replaced since."""
    from paper.models.clip import load_clip, small_clip

    folder, record = paths.artifacts("alignment"), _record()
    if record.params.source == "train":
        clip = small_clip(record.params.tower, record.preprocessing["size"])
        load_exactly(clip.model, load_tensors(folder / "clip.safetensors"), str(folder))
    else:
        clip = load_clip(record.params)
        if record.params.robust:
            load_exactly(clip.model.visual, load_tensors(folder / "tower.safetensors"), str(folder))
    freeze(clip.model)
    return clip


def _record():
    """What the alignment stage has written. Raises UserError if files that it names were replaced since."""
    file, kinds = paths.artifacts("alignment", "clip.json"), {"preprocessing": dict, "antialias": bool}
    record = stored(file, params=Clips, files=dict[str, str], **kinds)
    now = paths.files_of("alignment", record.params)
    if replaced := [key for key in record.files.keys() | now if record.files.get(key) != now.get(key)]:
        given = f"the file of {min(replaced)} is another than the one that the text embeddings were made with"
        raise UserError(f"{given}; put that one back, or run `make reproduce`")
    return record
