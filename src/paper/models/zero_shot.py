"""The alignment: CLIP's scores of an image against a prompt per class, as one differentiable module.

Pixels in [0,1] (B,3,H,W) to cosines (B,K). The image tower's own preprocessing is inside; the text tower has done its
work before: embeddings depend on the prompts alone.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from open_clip.transform import PreprocessCfg, center_crop_or_pad
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional as F

from multishield.errors import UserError
from multishield.files import read_json, write_json
from multishield.forward import device, device_of, freeze
from multishield.tensors import load_tensors, save_tensors
from paper import paths
from paper.models.cifar_resnet import load_exactly
from paper.models.clip import Clip, build_clip, load_clip
from paper.params.sections import Clips
from paper.workers.parts import in_parts

# Classes whose text embeddings are computed, and kept, at once: a killed run loses at most one block.
BLOCK = 20


class Preprocess(nn.Module):
    """CLIP's preprocessing as tensor operations that gradients pass through.

    The same steps, from the same configuration, as open_clip's transform for PIL images, without its rounding of
    resized pixels to 8 bits: tests/models/test_preprocessing.py measures what that makes on real images.

    Args:
        config: open_clip's: size, mean, std, interpolation, and resize mode "squash", "shortest" (then cropped) or
            "longest" (then padded with `fill_color`, 0 to 255).
        antialias, saturate: see `paper.models.clip.Clip`.
    """

    def __init__(self, config: PreprocessCfg, antialias: bool = True, saturate: bool = False):
        super().__init__()
        self.size = (config.size, config.size) if isinstance(config.size, int) else tuple(config.size)
        # open_clip, too, evaluates with bicubic where training had a random choice.
        self.interpolation = "bilinear" if config.interpolation == "bilinear" else "bicubic"
        self.resize_mode, self.fill = config.resize_mode, config.fill_color / 255
        self.antialias, self.saturate = antialias, saturate
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(config, name)).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.resize(x, resized(x.shape[-2:], self.size, self.resize_mode))
        return (center_crop_or_pad(x, self.size, self.fill) - self.mean) / self.std

    def resize(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Images (B,3,H,W) at another size; with `saturate` one axis after the other, cut off after each, as in PIL."""
        passes = [(x.shape[-2], size[1]), size] if self.saturate else [size]
        for step in passes:
            if tuple(x.shape[-2:]) != tuple(step):
                x = F.interpolate(x, list(step), mode=self.interpolation, antialias=self.antialias)
            if self.saturate:
                # Half a level more, which PIL rounds away: at [0,1] itself rounding errors of float arithmetic would
                # cut the gradient of white and black areas.
                x = x.clamp(-0.5 / 255, 1 + 0.5 / 255)
        return x


def resized(have: tuple[int, int], want: tuple[int, int], mode: str) -> tuple[int, int]:
    """Height and width to which open_clip resizes an image before it crops or pads it to `want`."""
    if mode == "squash":
        return want
    if mode == "shortest" and want[0] == want[1]:  # torchvision's Resize, which rounds down
        short = min(have)
        return tuple(want[0] if side == short else int(want[0] * side / short) for side in have)
    ratios = [h / w for h, w in zip(have, want, strict=True)]
    ratio = max(ratios) if mode == "longest" else min(ratios)
    return tuple(round(side / ratio) for side in have)


class ZeroShotClassifier(nn.Module):
    """Pixels in [0,1] (B,3,H,W) to cosines (B,K) of the image with each class's text embedding.

    Args:
        image_tower: pixels as `preprocess` makes them to embeddings (B,D); anything with that signature.
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

    def embed(self, x: Tensor) -> Tensor:
        """Pixels to image embeddings (B,D), as the tower gives them."""
        embedding = self.image_tower(self.preprocess(x))
        # CoCa's tower returns its tokens too.
        return embedding[0] if isinstance(embedding, tuple) else embedding

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.embed(x), dim=-1) @ self.text.T


def align(clip: Clip, text: Tensor) -> ZeroShotClassifier:
    """The alignment of a CLIP with text embeddings (K,D), normalised per class."""
    return ZeroShotClassifier(clip.model.visual, Preprocess(clip.preprocessing, clip.antialias, clip.saturate), text)


def align_classes(clip: Clip, classes: list[str], prompts: list[str]) -> ZeroShotClassifier:
    """The alignment of a CLIP with class names in prompts, frozen: what stands before one's own classifier.

    The names are in the order of that classifier's outputs; names and prompts as for `embed_prompts`.
    """
    return freeze(align(clip, embed_prompts(clip, classes, prompts)))


def embed_prompts(clip: Clip, classes: list[str], prompts: list[str]) -> Tensor:
    """Text embeddings (K,D) of K class names, each row of length 1.

    Per class the mean over the prompts, templates with one placeholder {}, of the normalised embeddings, normalised.
    """
    return F.normalize(_means(clip.model, _tokens(clip, classes, prompts)), dim=-1)


def keep_embeddings(clip: Clip, classes: list[str], prompts: list[str]) -> Tensor:
    """As `embed_prompts`, the same bytes, in blocks of classes: a killed run goes on after the last one.

    What was kept is found again by all that it depends on: the text tower, its device, and the tokens of every prompt.
    """
    tokens = _tokens(clip, classes, prompts)
    text_side = {k: v for k, v in sorted(clip.model.state_dict().items()) if not k.startswith("visual.")}
    inputs = (text_side, _structure(clip.model), device_of(clip.model).type, *tokens)
    parts = in_parts(
        "embedding prompts", _block, clip.model, tokens.__getitem__, len(tokens), BLOCK, *inputs, unit="block"
    )
    return F.normalize(torch.cat([part["means"] for part in parts]), dim=-1)


def _tokens(clip: Clip, classes: list[str], prompts: list[str]) -> list[Tensor]:
    """The tokens of every class's prompts, (P,L) each.

    Raises:
        UserError: a prompt is cut off at the end of the context, or two classes have the same tokens: CLIP could not
            tell them apart, and the shield would accept one for the other.
    """
    tokens = [clip.tokenizer([prompt.format(name) for prompt in prompts]) for name in classes]
    whole_texts = tokens[0].ndim == 2  # as open_clip's tokenizers have it; one's own may return a number per prompt
    padding = clip.tokenizer([""])[0, -1] if whole_texts else None
    for i, prompt in enumerate(prompts):
        seen: dict[tuple, str] = {}
        for name, rows in zip(classes, tokens, strict=True):
            text, row = prompt.format(name).rstrip(), rows[i].reshape(-1)
            # A full row is the whole prompt or its beginning: of a beginning, the last letter has no influence.
            if whole_texts and row[-1] != padding and torch.equal(clip.tokenizer([text[:-1]])[0], row):
                raise UserError(
                    f"alignment.prompts: {prompt!r} with the class {name!r} is longer than the {len(row)} tokens that "
                    "this CLIP reads, so that its end is cut off; shorten the prompt or the class's name"
                )
            twin = seen.setdefault(tuple(row.tolist()), name)
            if twin != name:
                raise UserError(
                    f"alignment.prompts: {prompt!r} is the same tokens for the classes {twin!r} and {name!r}, which "
                    "CLIP cannot tell apart; give them distinct names"
                )
    return tokens


def _block(model: nn.Module, tokens: list[Tensor]) -> dict[str, Tensor]:
    return {"means": _means(model, tokens)}


@torch.no_grad()
def _means(model: nn.Module, tokens: list[Tensor]) -> Tensor:
    """Per class the mean of its prompts' normalised embeddings, (K,D), on the CPU."""
    model.eval()
    where = device_of(model)
    return torch.stack([model.encode_text(t.to(where), normalize=True).mean(0) for t in tokens]).cpu()


def _structure(model: nn.Module) -> str:
    """What weights do not say of the text tower: its activation, its heads, how it pools."""
    parts = [f"{name}: {part}" for name, part in model.named_children() if name != "visual"]
    text = getattr(model, "text", model)
    heads = [m.num_heads for m in text.modules() if isinstance(m, nn.MultiheadAttention)]
    pooling = [getattr(text, name, None) for name in ("text_pool_type", "pool_type", "text_eos_id", "eos_id")]
    return "\n".join([type(model).__name__, *parts, str(heads), str(pooling)])


def save_alignment(clip: Clip, params: Clips, config: dict | None, text: Tensor, folder: Path) -> None:
    """Write what `load_alignment` needs: `clip.json`, the text embeddings, and the weights where they are ours.

    A CLIP that came from elsewhere is not copied: `clip.json` says where it is; of one that was made robust here, the
    image tower is. SigLIP's bias is not needed: the same for all classes, it changes neither cosines nor a softmax over
    classes.
    """
    save_tensors(folder / "text.safetensors", {"text": text, "scale": clip.model.logit_scale.exp().detach().reshape(1)})
    if params.source == "train":
        save_tensors(folder / "clip.safetensors", clip.model.state_dict())
    elif params.robust:
        save_tensors(folder / "tower.safetensors", clip.model.visual.state_dict())
    record = {"params": params.model_dump(), "config": config}
    record |= {"preprocessing": asdict(clip.preprocessing), "antialias": clip.antialias}
    write_json(folder / "clip.json", record)


def load_alignment() -> ZeroShotClassifier:
    """The alignment of the alignment stage, frozen, on the best device."""
    text = load_tensors(paths.artifacts("alignment", "text.safetensors"))["text"]
    return freeze(align(kept_clip(), text)).to(device())


def kept_clip() -> Clip:
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


def prompt_similarity(text: Tensor) -> Tensor:
    """Cosines between the classes' text embeddings, (K,K): high ones are classes that CLIP's text tower confuses."""
    return text @ text.T
