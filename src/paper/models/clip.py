"""CLIPs of the pipeline: its own small one, or from open_clip, from files, from an extension's function."""

import math

import open_clip
import torch
from open_clip.transform import PreprocessCfg
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from multishield.clip import check_pretrained, open_clip_model
from multishield.errors import UserError
from multishield.files import load_tensors, read_json
from multishield.zero_shot import Clip
from paper import paths
from paper.models.cifar_resnet import build_network, load_exactly
from paper.models.image_tower import HUB, replace_tower
from paper.params.sections import Clips
from paper.params.values import load_factory

KEYS = ("embed_dim", "vision_cfg", "text_cfg", "preprocess_cfg", "quick_gelu", "note")  # a note is for readers
FLAGS = vars(open_clip.CLIPVisionCfg()) | vars(open_clip.CLIPTextCfg()) | {"quick_gelu": False}
FLAGS = {key for key, default in FLAGS.items() if isinstance(default, bool)}
CONTEXT = 16  # tokens that a small CLIP reads
# The modes that `Preprocess` knows.
MODES = {"resize_mode": ("squash", "shortest", "longest"), "interpolation": ("bicubic", "bilinear", "random")}


class SmallClip(nn.Module):
    """A small CLIP with random weights: one of the pipeline's ResNets, and open_clip's text transformer."""

    def __init__(self, tower: str, dimensions: int = 128):
        super().__init__()
        self.visual = build_network(tower, dimensions)
        self.text = TextTransformer(CONTEXT, width=64, heads=2, layers=2, output_dim=dimensions)
        # A few dozen of 49,408 tokens occur. As random vectors they are told apart, which saves a quarter of each step.
        self.text.token_embedding.requires_grad_(False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # as CLIP

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Tokens (P,L) to embeddings (P,D)."""
        return F.normalize(self.text(tokens), dim=-1) if normalize else self.text(tokens)


def small_clip(tower: str, image_size: int) -> Clip:
    """A `SmallClip` for images of one size; `tower` is a name of `paper.params.values.ARCHITECTURES`."""
    preprocessing = PreprocessCfg(size=image_size, mean=(0.5,) * 3, std=(0.25,) * 3, resize_mode="squash")
    return Clip(SmallClip(tower), open_clip.SimpleTokenizer(context_length=CONTEXT), preprocessing)


def check(params: Clips) -> None:
    """Raises UserError if open_clip knows no such model or tag, or a file or a function is missing; loads nothing."""
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
