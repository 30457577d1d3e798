"""Where a CLIP comes from: open_clip by name, a configuration and weights in files, or a function of an extension."""

from collections.abc import Callable
from dataclasses import dataclass
from pickle import UnpicklingError

import open_clip
from open_clip.transform import PreprocessCfg
from safetensors import SafetensorError
from torch import Tensor, nn

from multishield.errors import UserError, reason_of
from multishield.files import read_json
from multishield.tensors import load_tensors
from paper import paths
from paper.models.cifar_resnet import load_exactly
from paper.models.image_tower import HUB, from_disk, replace_tower
from paper.params import ClipFactory, ClipFile, ClipOpen
from paper.params.choices import ByParameter, load_factory
from paper.params.sections import Clips

Tokenizer = Callable[[list[str]], Tensor]
# Prefixes with which open_clip takes configuration and weights from elsewhere; local-dir: since open_clip 3.
ELSEWHERE = ("hf-hub:", "local-dir:")
# What open_clip and huggingface_hub raise for files that are absent, unreachable, damaged or of another model. Network
# errors are OSErrors, or RuntimeErrors where open_clip rewords them; a malformed name is a ValueError.
LOADING = (OSError, RuntimeError, ValueError, KeyError, UnpicklingError, SafetensorError)


@dataclass(frozen=True)
class Clip:
    """A CLIP with what belongs to it: tokenizer, preprocessing, and how its bicubic resize treats pixels.

    `model` has open_clip's `visual`, `encode_text(tokens, normalize=True)` and `logit_scale`. `antialias=True` is what
    PIL and open_clip's own transform compute; False is torch's plain interpolation, for models that were trained with
    it. `saturate=True` cuts off what bicubic interpolation overshoots beyond black and white, as PIL does.
    """

    model: nn.Module
    tokenizer: Tokenizer
    preprocessing: PreprocessCfg
    antialias: bool = True
    saturate: bool = False


def check(params: Clips) -> None:
    """Say before the first stage what would fail after hours of training. Nothing is loaded or downloaded.

    Raises:
        UserError: open_clip knows no such model or tag; a file or a function does not exist.
    """
    if params.source == "open_clip":
        _weights(params)
        if params.image_tower and not params.image_tower.startswith(HUB):
            from_disk(params.image_tower)
    if params.source == "file":
        paths.existing("alignment.config", params.config)
        paths.existing("alignment.weights", params.weights)
    if params.source == "factory":
        load_factory("alignment.factory", params.factory)


def load_clip(params: ClipOpen | ClipFile | ClipFactory) -> Clip:
    """A CLIP that exists already, from where the parameters say."""
    return LOADERS[params.source](params)


def made_clip(params: ClipFactory) -> Clip:
    """A CLIP from an extension's function without arguments. Raises UserError if it is absent or returns no `Clip`."""
    clip = load_factory("alignment.factory", params.factory)()
    if not isinstance(clip, Clip):
        raise UserError(
            f"alignment.factory is {params.factory!r}, which returned {type(clip).__name__}; it must return a "
            "paper.models.clip.Clip"
        )
    return clip


def build_clip(config: dict, antialias: bool, source: str = "the CLIP configuration") -> Clip:
    """A CLIP in open_clip's own class, with random weights, from its JSON configuration.

    That has `embed_dim`, `vision_cfg`, `text_cfg`, `preprocess_cfg`, and optionally `quick_gelu`, as open_clip's.

    Raises UserError if a section or a key is missing or unknown.
    """
    try:
        # A fresh copy of each section: open_clip writes into what it is given.
        vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
        model = open_clip.CLIP(config["embed_dim"], vision, text, quick_gelu=config.get("quick_gelu", False))
        preprocessing = _preprocessing(config["preprocess_cfg"], source)
        length = text.get("context_length", 77)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{source} is not a CLIP configuration ({error}); it must hold embed_dim, vision_cfg, "
            "text_cfg and preprocess_cfg with open_clip's keys"
        ) from None
    return Clip(model, open_clip.SimpleTokenizer(context_length=length), preprocessing, antialias)


# What `Preprocess` can do; open_clip evaluates with bicubic where training had a random choice.
KNOWN = {"resize_mode": ("squash", "shortest", "longest"), "interpolation": ("bicubic", "bilinear", "random")}


def _preprocessing(config: dict, source: str) -> PreprocessCfg:
    """Preprocessing from its JSON.

    Raises:
        UserError: a value that nothing can be done with: it must not fall back to a default.
    """
    made = PreprocessCfg(**config)
    for key, known in KNOWN.items():
        if getattr(made, key) not in known:
            raise UserError(f"{source}: {key} is {getattr(made, key)!r}; accepted are {', '.join(known)}")
    for key, low in (("mean", 0.0), ("std", 1e-6)):
        value = getattr(made, key)
        if len(value) != 3 or not all(isinstance(v, int | float) and low <= v <= 1 for v in value):
            raise UserError(f"{source}: {key} is {value!r}; it must be three numbers of pixels in [0,1], not in 0..255")
    return made


def read_clip(params: ClipFile) -> Clip:
    """A CLIP from a JSON configuration and a safetensors file, both of which must fit exactly."""
    config, weights = paths.resolve(params.config), paths.resolve(params.weights)
    clip = build_clip(read_json(config), params.antialias, str(config))
    load_exactly(clip.model, load_tensors(weights), str(weights))
    return clip


def open_named_clip(params: ClipOpen) -> Clip:
    """A model of open_clip by name; weights are downloaded once, by open_clip, unless `pretrained` is a file.

    Of a file nobody says how images were prepared: what all published weights of that name share is taken, or, where
    they differ (only ViT-L-14 and ViT-H-14), OpenAI's mean and standard deviation, open_clip's own default.

    Raises:
        UserError: unknown name or tag, weights of another activation, or a download that failed.
    """
    name, weights = params.model, _weights(params)
    try:
        # Required: without weights on the hub, open_clip would go on with random ones.
        model = open_clip.create_model(name, pretrained=weights, require_pretrained=True)
    except LOADING as error:
        raise UserError(
            f"the weights {params.pretrained or name!r} of {name} could not be loaded ({reason_of(error)}); without a "
            "network give the path of a downloaded weights file as alignment.pretrained"
        ) from None
    config = dict(open_clip.get_model_preprocess_cfg(model))
    if weights and weights not in open_clip.list_pretrained_tags_by_model(name):
        config |= _shared_preprocessing(name)
    if params.image_tower:
        replace_tower(model.visual, params.image_tower)
    return Clip(model, _tokenizer(name), PreprocessCfg(**config), saturate=True)


def open_clip_model(model: str, pretrained: str | None, image_tower: str | None = None) -> Clip:
    """A model of open_clip, for use in Python: arguments as in `params.ClipOpen`, errors as of `open_named_clip`."""
    # Prompts belong to a section of params.yaml, and not to the model.
    section = {"source": "open_clip", "prompts": ["{}"], "model": model, "pretrained": pretrained}
    return open_named_clip(ClipOpen(**section, image_tower=image_tower))


def _weights(params: ClipOpen) -> str | None:
    """What open_clip is to load: a tag, a file's path, or None where the name itself says it."""
    name, tag = params.model, params.pretrained
    if name.startswith(ELSEWHERE):
        if tag is not None:
            raise UserError(
                f"alignment.pretrained is {tag!r}, but {name} brings its own weights; write `pretrained: null`"
            )
        return None
    if name not in open_clip.list_models():
        raise UserError(
            f"alignment.model is {name!r}, which open_clip does not know; run "
            "`python -c 'import open_clip; print(open_clip.list_models())'` for the names"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag in tags:
        # open_clip only warns, and the embeddings are then subtly wrong. The other way round its table is not reliable:
        # roberta-ViT-B-32 has QuickGELU and its tag does not say so.
        wanted = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
        if wanted and not open_clip.get_model_config(name).get("quick_gelu", False):
            raise UserError(
                f"alignment.model is {name!r}, but the weights {tag!r} were trained with QuickGELU; "
                f"write {name + '-quickgelu'!r}"
            )
        return tag
    if not tag or not paths.resolve(tag).is_file():
        raise UserError(
            f"alignment.pretrained is {tag!r}, but for {name} it must be the path of a weights file or one "
            f"of: {', '.join(tags) or 'no tag exists'}"
        )
    return str(paths.resolve(tag))


def _shared_preprocessing(name: str) -> dict:
    """Mean, std, interpolation and resize mode, where all published weights of a model agree on them."""
    keys = ("mean", "std", "interpolation", "resize_mode")
    published = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    found = [{key: config[key] for key in keys if config.get(key)} for config in published]
    return found[0] if found and all(f == found[0] for f in found) else {}


def _tokenizer(name: str) -> Tokenizer:
    """The model's tokenizer; those of SigLIP and of multilingual models come from Hugging Face.

    Raises UserError if the package transformers is not installed, or the tokenizer could not be downloaded.
    """
    try:
        return open_clip.get_tokenizer(name)
    except ImportError as error:
        raise UserError(
            f"the tokenizer of {name} needs a package that is not installed ({error}); run `pip install transformers`"
        ) from None
    except LOADING as error:
        raise UserError(
            f"the tokenizer of {name} could not be loaded ({reason_of(error)}); it is downloaded from Hugging Face "
            "once: load it where there is a network, or copy that machine's cache folder and set HF_HOME to it"
        ) from None


LOADERS = ByParameter({"open_clip": open_named_clip, "file": read_clip, "factory": made_clip})
