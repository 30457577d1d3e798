"""CLIPs of the pipeline: from open_clip, from files, from an extension's function, or the alignment stage's own."""

from pathlib import Path

import open_clip
from open_clip.transform import PreprocessCfg
from torch import Tensor

from multishield.clip import check_pretrained, open_clip_model
from multishield.errors import UserError
from multishield.files import load_tensors, read_json, save_tensors, write_json
from multishield.forward import device, freeze
from multishield.zero_shot import Clip, ZeroShotClassifier, align
from paper import paths
from paper.models.cifar_resnet import load_exactly
from paper.models.classifier import folded
from paper.models.image_tower import HUB, replace_tower
from paper.params.sections import Clips
from paper.params.values import load_factory, stored

KEYS = ("embed_dim", "vision_cfg", "text_cfg", "preprocess_cfg", "quick_gelu", "note")  # a note is for readers
FLAGS = vars(open_clip.CLIPVisionCfg()) | vars(open_clip.CLIPTextCfg()) | {"quick_gelu": False}
FLAGS = {key for key, default in FLAGS.items() if isinstance(default, bool)}
# The modes that `Preprocess` knows.
MODES = {"resize_mode": ("squash", "shortest", "longest"), "interpolation": ("bicubic", "bilinear", "random")}


def check(params: Clips) -> None:
    """Raises UserError if open_clip does not know the model or the tag, or a file or a function does not exist.

    Nothing is loaded or downloaded.
    """
    if params.source == "open_clip":
        check_pretrained(params.model, _local(params.pretrained))
        if params.image_tower and not params.image_tower.startswith(HUB):
            paths.existing("alignment.image_tower", params.image_tower)
    if params.source == "file":
        paths.existing("alignment.config", params.config)
        paths.existing("alignment.weights", params.weights)
    if params.source == "factory":
        load_factory("alignment.factory", params.factory)


def load_clip(params: Clips) -> Clip:
    """A CLIP that is not trained here. Raises UserError if it cannot be loaded, or its files do not fit exactly."""
    if params.source == "open_clip":
        clip = open_clip_model(params.model, _local(params.pretrained))
        if params.image_tower:
            replace_tower(clip.model.visual, params.image_tower)
    elif params.source == "file":
        config, weights = paths.resolve(params.config), paths.resolve(params.weights)
        clip = build_clip(read_json(config), params.antialias, str(config))
        load_exactly(clip.model, load_tensors(weights), str(weights))
    else:
        clip = load_factory("alignment.factory", params.factory)()
        if not isinstance(clip, Clip):
            given = f"alignment.factory is {params.factory!r}, which returned {type(clip).__name__}"
            raise UserError(f"{given}; it must return a multishield.Clip")
    return clip


def _local(pretrained: str | None) -> str | None:
    """The full path of a weights file, which params.yaml may give relative to the project's root; a tag as it is."""
    is_file = pretrained and paths.resolve(pretrained).is_file()
    return str(paths.existing("alignment.pretrained", pretrained)) if is_file else pretrained


def build_clip(config: dict, antialias: bool = True, source: str = "the CLIP configuration") -> Clip:
    """A CLIP in open_clip's own class, with random weights, from a dictionary with open_clip's keys.

    Raises UserError, which names `source`, if a key is missing or unknown, or a preprocessing cannot be used.
    """
    try:
        # A fresh copy of each section: open_clip writes into what it is given.
        vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
        wrong = [k for k, value in (config | vision | text).items() if k in FLAGS and not isinstance(value, bool)]
        if wrong := [key for key in config if key not in KEYS] + wrong:
            raise ValueError(f"{wrong[0]} is an unknown key, or a flag that is neither true nor false")
        model = open_clip.CLIP(config["embed_dim"], vision, text, quick_gelu=config.get("quick_gelu", False))
        preprocessing = _preprocessing(config["preprocess_cfg"], source)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        keys = f"{', '.join(KEYS[:4])} with open_clip's keys, and may hold {KEYS[4]} and a {KEYS[5]}"
        raise UserError(f"{source} is not a CLIP configuration ({error}); it must hold {keys}") from None
    tokenizer = open_clip.SimpleTokenizer(context_length=text.get("context_length", 77))
    return Clip(model, tokenizer, preprocessing, antialias)


def _preprocessing(config: dict, source: str) -> PreprocessCfg:
    """The preprocessing of a configuration. A value that cannot be used must not fall back to a default."""
    made = PreprocessCfg(**config)
    for key, accepted in MODES.items():
        if getattr(made, key) not in accepted:
            raise UserError(f"{source}: {key} is {getattr(made, key)!r}; accepted are {', '.join(accepted)}")
    for key, low in (("mean", 0.0), ("std", 1e-6)):
        value = getattr(made, key)
        if len(value) != 3 or not all(isinstance(v, int | float) and low <= v <= 1 for v in value):
            raise UserError(f"{source}: {key} is {value!r}; it must be three numbers of pixels in [0,1], not in 0..255")
    return made


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
    write_json(folder / "clip.json", record | {"files": paths.files_of("alignment", params)})


def load_alignment() -> ZeroShotClassifier:
    """The zero-shot classifier of the alignment stage, frozen, on the best device."""
    text = load_tensors(paths.artifacts("alignment", "text.safetensors"))["text"]
    return freeze(align(load_pipeline_clip(), text)).to(device())


def load_pipeline_clip() -> Clip:
    """The CLIP of the alignment stage, both towers, frozen. Raises UserError if its files were replaced since."""
    folder = paths.artifacts("alignment")
    record = stored(folder / "clip.json", params=Clips, config=dict | None, antialias=bool, files=dict[str, str])
    now = paths.files_of("alignment", record.params)
    if replaced := [key for key in record.files.keys() | now if record.files.get(key) != now.get(key)]:
        given = f"the file of {min(replaced)} is another than the one that the text embeddings were made with"
        raise UserError(f"{given}; put that one back, or run `make reproduce`")
    if record.params.source == "train":
        clip = build_clip(record.config, record.antialias)
        load_exactly(clip.model, load_tensors(folder / "clip.safetensors"), str(folder))
        clip.model.visual = folded(clip.model.visual)
    else:
        clip = load_clip(record.params)
        if record.params.robust:
            load_exactly(clip.model.visual, load_tensors(folder / "tower.safetensors"), str(folder))
    freeze(clip.model)
    return clip
