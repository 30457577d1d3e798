"""Training of a small CLIP on image-caption pairs (Radford et al. 2021), with open_clip's loss."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from open_clip.loss import ClipLoss
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from multishield.forward import accuracy, device, freeze
from multishield.images import Images
from multishield.zero_shot import Clip, Preprocess, align, embed_prompts
from paper.models.clip import load_clip, small_clip
from paper.params.sections import Clips
from paper.training.epochs import augment, fit, need_images


def zero_shot(clip: Clip, data: Images, text: Tensor) -> float:
    """Zero-shot accuracy: the share of images whose most similar text embedding (K,D) is the label's."""
    return accuracy(align(clip, text).eval().to(device()), data)


def _one_epoch(clip: Clip, data: Images, tokens: Tensor, params: Clips, seed: int, epoch: int, step: Callable) -> float:
    """Train one epoch on batches of one size, because the loss compares within a batch; returns the mean loss."""
    model, loss_of = clip.model.train(), ClipLoss()
    preprocess = Preprocess(clip.preprocessing, clip.antialias).to(device())
    generator, size = torch.Generator().manual_seed(seed * 100_003 + epoch), min(params.batch_size, len(data))
    batches = [b for b in torch.randperm(len(data), generator=generator).split(size) if len(b) == size]
    total = 0.0
    for batch in batches:
        pixels = augment(data[batch].pixels, generator) if params.augment else data[batch].pixels
        image = F.normalize(model.visual(preprocess(pixels.to(device()))), dim=-1)
        # Captions repeat within a batch: each goes through the text tower once.
        different, caption = tokens[batch].unique(dim=0, return_inverse=True)
        text = model.encode_text(different.to(device()), normalize=True)[caption.to(device())]
        loss = loss_of(image, text, model.logit_scale.exp())
        # Without a limit on the first epochs' gradients, some runs learned and others, nearly alike, did not.
        total += step(loss, 0.5) / len(batches)
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))  # as CLIP: a temperature of at most 100
    return total


def train_or_load(
    params: Clips, data: Images, captions: list, validation: Images, classes: list, seed: int, resume: Path | None
) -> tuple[Clip, pd.DataFrame]:
    """Train a CLIP, resumably (see `fit`), or load one, as the parameters say.

    Only a training needs `captions`, one for each image. Returns the CLIP, frozen, and a row per epoch (of a loaded
    one epoch 0): epoch, loss, zero_shot_accuracy on the validation images.
    """
    if params.source != "train":
        clip = load_clip(params)
        freeze(clip.model).to(device())
        score = zero_shot(clip, validation, embed_prompts(clip, classes, params.prompts))
        return clip, pd.DataFrame([{"epoch": 0, "loss": float("nan"), "zero_shot_accuracy": score}])
    need_images("alignment.source is 'train'", train=data)
    torch.manual_seed(seed)
    clip = small_clip(params.tower, data.images.shape[-1])
    clip.model.to(device(), memory_format=torch.channels_last)
    trained = [p for p in clip.model.parameters() if p.requires_grad]
    rate, batches = params.learning_rate, len(data) // min(params.batch_size, len(data))
    optimiser = torch.optim.AdamW(trained, rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    schedule = OneCycleLR(optimiser, rate, total_steps=params.epochs * batches + 1)
    task, inputs = "training CLIP", (params.model_dump(), data.images, captions, seed)
    one_epoch = partial(_one_epoch, clip, data, clip.tokenizer(captions), params, seed)

    def scores() -> dict[str, float]:
        return {"zero_shot_accuracy": zero_shot(clip, validation, embed_prompts(clip, classes, params.prompts))}

    # The last epoch stays: nothing overfits here, and zero-shot accuracy on few images is noise.
    history = fit(task, resume, inputs, clip.model, schedule, params, batches, one_epoch, scores, None)
    freeze(clip.model)
    return clip, history
