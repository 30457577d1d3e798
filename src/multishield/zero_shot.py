"""CLIP as a classifier: cosines of an image with one text embedding per class. It needs no open_clip."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multishield.errors import UserError
from multishield.forward import device_of, freeze


@dataclass(frozen=True)
class Clip:
    """A CLIP with its tokenizer (texts to tokens (P,L)) and its preprocessing, open_clip's `PreprocessCfg` or alike.

    The model has open_clip's `visual`, `encode_text(tokens, normalize=True)` and `logit_scale`. Images are resized as
    PIL does with `antialias`, else as torch does. `saturate` cuts off values beyond black and white, as PIL does.
    """

    model: nn.Module
    tokenizer: Callable[[list[str]], Tensor]
    preprocessing: Any
    antialias: bool = True
    saturate: bool = False


class Preprocess(nn.Module):
    """Pixels in [0,1] (B,3,H,W) to the tower's input: open_clip's transform of PIL images, without its 8 bits."""

    def __init__(self, config: Any, antialias: bool = True, saturate: bool = False):
        super().__init__()
        self.size = (config.size, config.size) if isinstance(config.size, int) else tuple(config.size)
        # open_clip, too, evaluates with bicubic where training had a random choice.
        self.interpolation = "bilinear" if config.interpolation == "bilinear" else "bicubic"
        self.resize_mode, self.fill = config.resize_mode, config.fill_color / 255
        self.antialias, self.saturate = antialias, saturate
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(config, name)).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        size = resized(x.shape[-2:], self.size, self.resize_mode)
        # With `saturate` one axis after the other is resized, and cut off, as in PIL.
        for step in [(x.shape[-2], size[1]), size] if self.saturate else [size]:
            if tuple(x.shape[-2:]) != tuple(step):
                x = F.interpolate(x, list(step), mode=self.interpolation, antialias=self.antialias)
            if self.saturate:  # half a level saves the gradients of white and black areas from rounding errors
                x = x.clamp(-0.5 / 255, 1 + 0.5 / 255)
        return (center_crop_or_pad(x, self.size, self.fill) - self.mean) / self.std


def resized(have: tuple[int, int], want: tuple[int, int], mode: str) -> tuple[int, int]:
    """Height and width to which open_clip resizes an image before it crops or pads it to `want`."""
    if mode == "squash":
        return want
    if mode == "shortest" and want[0] == want[1]:  # torchvision's Resize, which rounds down
        short = min(have)
        return tuple(want[0] if side == short else int(want[0] * side / short) for side in have)
    ratio = (max if mode == "longest" else min)(h / w for h, w in zip(have, want, strict=True))
    return tuple(round(side / ratio) for side in have)


def center_crop_or_pad(x: Tensor, size: tuple[int, int], fill: float) -> Tensor:
    """Images (B,3,H,W) cropped or padded to a size around their centre, with open_clip's rounding of the offsets."""
    pads = []
    for extra in (size[1] - x.shape[-1], size[0] - x.shape[-2]):  # torch wants the last axis first
        before = extra // 2 if extra > 0 else -round(-extra / 2)
        pads += [before, extra - before]
    return F.pad(x, pads, value=fill) if any(pads) else x


class ZeroShotClassifier(nn.Module):
    """Pixels in [0,1] (B,3,H,W) to cosines (B,K) of the image with each class's text embedding.

    The image tower is any module from the output of `preprocess` to embeddings (B,D). The text embeddings (K,D) are
    those of `embed_prompts`. Raises ValueError if a row does not have length 1.
    """

    def __init__(self, image_tower: nn.Module, preprocess: nn.Module, text: Tensor):
        super().__init__()
        # Defect 3 of the public reference: embeddings divided by their norm over the class axis.
        if not torch.allclose(text.norm(dim=1), torch.ones(len(text)), atol=1e-4):
            raise ValueError("text embeddings must have length 1 per class (per row)")
        # Convolutions are fastest in this layout.
        self.image_tower, self.preprocess = image_tower.to(memory_format=torch.channels_last), preprocess
        self.register_buffer("text", text)

    def embed(self, x: Tensor) -> Tensor:
        """Pixels (B,3,H,W) to the tower's image embeddings (B,D), not normalised."""
        embedding = self.image_tower(self.preprocess(x))
        return embedding[0] if isinstance(embedding, tuple) else embedding  # CoCa's tower returns its tokens too

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.embed(x), dim=-1) @ self.text.T


def align(clip: Clip, text: Tensor) -> ZeroShotClassifier:
    """The zero-shot classifier of a CLIP and text embeddings (K,D), normalised per class."""
    return ZeroShotClassifier(clip.model.visual, Preprocess(clip.preprocessing, clip.antialias, clip.saturate), text)


def align_classes(clip: Clip, classes: Sequence[str], prompts: Sequence[str | Callable]) -> ZeroShotClassifier:
    """The zero-shot classifier of a CLIP for K class names, frozen: the second model of a shield.

    The names are in the order of the other classifier's outputs. For prompts and errors see `embed_prompts`.
    """
    return freeze(align(clip, embed_prompts(clip, classes, prompts)))


@torch.no_grad()
def embed_prompts(clip: Clip, classes: Sequence[str], prompts: Sequence[str | Callable]) -> Tensor:
    """Text embeddings (K,D) of K class names, on the CPU, each row of length 1.

    A row is the normalised mean, over the prompts, of the normalised embeddings of the class. Each prompt has one
    placeholder for the class name, as "a photo of a {}", or is a function of it. Raises UserError if names or prompts
    cannot be used, or if CLIP cuts off a prompt, or confuses two.
    """
    tokens, model, device = _tokens(clip, classes, prompts), clip.model.eval(), device_of(clip.model)
    means = [model.encode_text(rows.to(device), normalize=True).mean(0) for rows in tokens]
    return F.normalize(torch.stack(means).cpu(), dim=-1)


def _tokens(clip: Clip, classes: Sequence[str], prompts: Sequence[str | Callable]) -> list[Tensor]:
    """The tokens (P,L) of each class's prompts, or a UserError."""
    texts = _texts(classes, prompts)
    tokens = [clip.tokenizer(list(row)) for row in texts]
    padding = clip.tokenizer([""])[0, -1] if tokens[0].ndim == 2 else None  # some tokenizers return a number per prompt
    for i, prompt in enumerate(prompts):
        seen: dict[tuple, str] = {}
        for name, filled, rows in zip(classes, texts, tokens, strict=True):
            text, row = filled[i].rstrip(), rows[i].reshape(-1)
            # A full row may be cut off. Then the prompt's last letter has no influence.
            if padding is not None and row[-1] != padding and torch.equal(clip.tokenizer([text[:-1]])[0], row):
                raise UserError(
                    f"the prompt {prompt!r} (alignment.prompts) with the class {name!r} is longer than the {len(row)} "
                    "tokens that this CLIP reads, so its end is cut off; shorten the prompt or the class's name"
                )
            if (other := seen.setdefault(tuple(row.tolist()), name)) != name:
                raise UserError(
                    f"the prompt {prompt!r} (alignment.prompts) gives the same tokens for the classes {other!r} and "
                    f"{name!r}, which CLIP cannot tell apart; give them distinct names"
                )
    return tokens


def _texts(classes: Sequence[str], prompts: Sequence[str | Callable]) -> list[list[str]]:
    """Per class its prompts with its name, or a UserError."""
    named = isinstance(classes, list | tuple) and all(isinstance(name, str) and name.strip() for name in classes)
    if not named or len(set(classes)) < max(2, len(classes)):
        raise UserError(f"the classes are {str(classes)[:80]}; a list of at least two different names is accepted")
    filled = isinstance(prompts, list | tuple) and all(callable(p) or str(p).count("{}") == 1 for p in prompts)
    if not filled or not prompts:
        accepted = "a list of texts with one {} each, or of functions of a name, is accepted"
        raise UserError(f"the prompts are {str(prompts)[:80]}; {accepted}")
    return [[prompt(name) if callable(prompt) else prompt.format(name) for prompt in prompts] for name in classes]
