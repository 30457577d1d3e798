"""The alignment: CLIP's scores of an image against a prompt per class, as one differentiable module.

Pixels in [0,1] (B,3,H,W) to cosines (B,K). The image tower's own preprocessing is inside; the text tower has done its
work before: embeddings depend on the prompts alone.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import open_clip
import torch
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from multishield import paths
from multishield.classifiers import device, freeze, load_exactly
from multishield.errors import UserError
from multishield.files import load_tensors, read_json, save_tensors, write_json
from multishield.params import ClipFile, ClipOpen, ClipTrained

Tokenizer = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class Clip:
    """A CLIP with what belongs to it: tokenizer, preprocessing, and how its bicubic resize treats pixels.

    `antialias=True` is what PIL and open_clip's own transform compute; False is torch's plain interpolation, for
    models that were trained with it.
    """

    model: nn.Module
    tokenizer: Tokenizer
    preprocessing: PreprocessCfg
    antialias: bool = True


class Preprocess(nn.Module):
    """CLIP's preprocessing as tensor operations that gradients pass through.

    The same steps, from the same configuration, as open_clip's transform for PIL images, without its rounding of
    resized pixels to 8 bits.
    """

    def __init__(self, config: PreprocessCfg, antialias: bool = True):
        super().__init__()
        height, width = (config.size, config.size) if isinstance(config.size, int) else config.size
        mode = InterpolationMode(config.interpolation if config.interpolation != "random" else "bicubic")
        if config.resize_mode == "squash":
            steps = [v2.Resize((height, width), mode, antialias=antialias)]
        elif config.resize_mode == "shortest" and height == width:
            steps = [v2.Resize(height, mode, antialias=antialias), v2.CenterCrop((height, width))]
        else:
            raise UserError(
                f"the CLIP's resize mode {config.resize_mode!r} for {height}x{width} images is not supported; "
                "accepted are 'squash', and 'shortest' for square images"
            )
        self.resize = nn.Sequential(*steps)
        self.normalise = v2.Normalize(list(config.mean), list(config.std))

    def forward(self, x: Tensor) -> Tensor:
        return self.normalise(self.resize(x))


class Alignment(nn.Module):
    """Pixels in [0,1] (B,3,H,W) to cosines (B,K) of the image with each class's text embedding.

    Args:
        image_tower: preprocessed pixels to embeddings (B,D); anything with that signature.
        preprocess: see `Preprocess`.
        text: text embeddings (K,D), normalised per class, as `embed_prompts` makes them.

    Raises:
        ValueError: a row of `text` has not length one.
    """

    def __init__(self, image_tower: nn.Module, preprocess: nn.Module, text: Tensor):
        super().__init__()
        # Defect 3 of the public reference: embeddings divided by their norm over the class axis.
        if not torch.allclose(text.norm(dim=1), torch.ones(len(text)), atol=1e-4):
            raise ValueError("text embeddings must have length 1 per class (per row)")
        # The layout that CPUs and GPUs convolve fastest in.
        self.image_tower, self.preprocess = image_tower.to(memory_format=torch.channels_last), preprocess
        self.register_buffer("text", text)

    def forward(self, x: Tensor) -> Tensor:
        embedding = self.image_tower(self.preprocess(x))
        return nn.functional.normalize(embedding, dim=-1) @ self.text.T


@torch.no_grad()
def embed_prompts(clip: Clip, classes: list[str], prompts: list[str]) -> Tensor:
    """Text embeddings of the classes: per class the mean over the prompts of the normalised embeddings, normalised.

    Args:
        classes: K class names.
        prompts: templates with one placeholder {}.

    Returns:
        (K,D), each row of length 1.
    """
    clip.model.eval()
    where = next(clip.model.parameters()).device
    rows = []
    for name in classes:
        tokens = clip.tokenizer([prompt.format(name) for prompt in prompts]).to(where)
        rows.append(clip.model.encode_text(tokens, normalize=True).mean(0))
    return nn.functional.normalize(torch.stack(rows), dim=-1).cpu()


def build_clip(config: dict, antialias: bool, source: str = "the CLIP configuration") -> Clip:
    """A CLIP in open_clip's own class, with random weights, from its JSON configuration.

    Args:
        config: `embed_dim`, `vision_cfg`, `text_cfg`, `preprocess_cfg`, as open_clip has them.

    Raises:
        UserError: a section or a key is missing or unknown.
    """
    try:
        # A fresh copy of each section: open_clip writes into what it is given.
        model = open_clip.CLIP(config["embed_dim"], dict(config["vision_cfg"]), dict(config["text_cfg"]))
        preprocessing = PreprocessCfg(**config["preprocess_cfg"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{source} is not a CLIP configuration ({error}); it must hold embed_dim, vision_cfg, "
            "text_cfg and preprocess_cfg with open_clip's keys"
        ) from None
    length = config["text_cfg"].get("context_length", 77)
    return Clip(model, open_clip.SimpleTokenizer(context_length=length), preprocessing, antialias)


def read_clip(params: ClipFile) -> Clip:
    """A CLIP from a JSON configuration and a safetensors file, both of which must fit exactly."""
    config, weights = paths.resolve(params.config), paths.resolve(params.weights)
    clip = build_clip(read_json(config), params.antialias, str(config))
    load_exactly(clip.model, load_tensors(weights), str(weights))
    return clip


def open_named_clip(params: ClipOpen) -> Clip:
    """A model of open_clip by name; weights are downloaded once, by open_clip, unless `pretrained` is a file.

    Raises:
        UserError: unknown name or tag, or the download failed.
    """
    name, tag = params.model, params.pretrained
    hub = name.startswith("hf-hub:")
    if not hub and name not in open_clip.list_models():
        raise UserError(
            f"alignment.model is {name!r}, which open_clip does not know; run "
            "`python -c 'import open_clip; print(open_clip.list_models())'` for the names"
        )
    tags = [] if hub else open_clip.list_pretrained_tags_by_model(name)
    if not hub and tag not in tags and not (tag and Path(tag).is_file()):
        raise UserError(
            f"alignment.pretrained is {tag!r}, but for {name} it must be the path of a weights file or one "
            f"of: {', '.join(tags) or 'no tag exists'}"
        )
    try:
        model, _, _ = open_clip.create_model_and_transforms(name, pretrained=tag)
    except (OSError, RuntimeError) as error:
        # huggingface_hub's and urllib's network errors are OSErrors, or RuntimeErrors where open_clip rewords them.
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the weights {tag or name!r} of {name} could not be loaded ({reason}); without a network give "
            "the path of a downloaded weights file as alignment.pretrained"
        ) from None
    return Clip(model, open_clip.get_tokenizer(name), PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)))


def save_alignment(
    clip: Clip, params: ClipTrained | ClipOpen | ClipFile, config: dict | None, text: Tensor, folder: Path
) -> None:
    """Write what `load_alignment` needs: `clip.json`, the text embeddings, and the weights where they are ours.

    A CLIP that came from elsewhere is not copied: `clip.json` says where it is.
    """
    save_tensors(folder / "text.safetensors", {"text": text, "scale": clip.model.logit_scale.exp().detach().reshape(1)})
    if params.source == "train":
        save_tensors(folder / "clip.safetensors", clip.model.state_dict())
    write_json(
        folder / "clip.json",
        {
            "params": params.model_dump(),
            "config": config,
            "preprocessing": asdict(clip.preprocessing),
            "antialias": clip.antialias,
        },
    )


def load_alignment() -> Alignment:
    """The alignment of the alignment stage, frozen, on the best device."""
    folder = paths.artifacts("alignment")
    record = read_json(folder / "clip.json")
    source = record["params"]["source"]
    if source == "train":
        clip = build_clip(record["config"], record["antialias"])
        load_exactly(clip.model, load_tensors(folder / "clip.safetensors"), str(folder))
    else:
        clip = (
            read_clip(ClipFile(**record["params"]))
            if source == "file"
            else open_named_clip(ClipOpen(**record["params"]))
        )
    text = load_tensors(folder / "text.safetensors")["text"]
    preprocess = Preprocess(clip.preprocessing, clip.antialias)
    return freeze(Alignment(clip.model.visual, preprocess, text)).to(device())


def prompt_similarity(text: Tensor) -> Tensor:
    """Cosines between the classes' text embeddings, (K,K): high ones are classes that CLIP's text tower confuses."""
    return text @ text.T
