"""Training of the demo's small CLIP on image-caption pairs (Radford et al. 2021): open_clip's model and loss."""

import math
from collections.abc import Callable

import pandas as pd
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn

from multishield.forward import accuracy, device, freeze
from multishield.images import Split
from paper.models.clip import Clip, build_clip, load_clip
from paper.models.zero_shot import Preprocess, align, embed_prompts, keep_embeddings
from paper.params import ClipTrained
from paper.params.sections import Clips
from paper.training.epochs import converging, run_epochs

# ImageNet-free constants: the demo's images are their own domain.
MEAN, STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
MAX_NORM = 0.5  # of the gradient


def small_config(tower: str, image_size: int) -> dict:
    """Configuration of a small CLIP: an image tower by its name in timm, a two-layer text transformer."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"timm_model_name": tower, "timm_pool": "avg", "timm_proj": "linear", "image_size": image_size},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
        "preprocess_cfg": {"size": image_size, "mean": MEAN, "std": STD, "resize_mode": "squash"},
    }


def zero_shot(clip: Clip, split: Split, text: Tensor) -> float:
    """Zero-shot accuracy: the fraction of images whose most similar text embedding (K,D) is the label's."""
    training = clip.model.training
    result = accuracy(align(clip, text).eval().to(device()), split)
    clip.model.train(training)
    return result


def _one_epoch(
    clip: Clip, data: Split, tokens: Tensor, params: ClipTrained, epoch: int, optimiser, schedule, seed: int, tick
) -> float:
    clip.model.train()
    preprocess, loss_of = Preprocess(clip.preprocessing, clip.antialias).to(device()), ClipLoss()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    batches = [b for b in order.split(params.batch_size) if len(b) == min(params.batch_size, len(data))]
    total = 0.0
    for batch in batches:
        image = clip.model.encode_image(preprocess(data[batch].pixels.to(device())), normalize=True)
        # Captions repeat within a batch: each goes through the text tower once.
        different, which = tokens[batch].unique(dim=0, return_inverse=True)
        text = clip.model.encode_text(different.to(device()), normalize=True)[which.to(device())]
        loss = loss_of(image, text, clip.model.logit_scale.exp())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        # It steadies the first epochs: without it, runs that should have been alike learned in some and not in others.
        nn.utils.clip_grad_norm_(clip.model.parameters(), MAX_NORM)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            clip.model.logit_scale.clamp_(0, math.log(100))  # as CLIP: a temperature of at most 100
        total += loss.item() / len(batches)
        tick()
    return total


def train_clip(
    params: ClipTrained, data: Split, captions: list[str], validation: Split, classes: list[str], seed: int
) -> tuple[Clip, dict, pd.DataFrame]:
    """Train a small CLIP, resumably (see `run_epochs`).

    Args:
        data, captions: the training images and a caption for each.
        validation: its zero-shot accuracy is the training curve.

    Returns:
        The trained CLIP, its configuration, and a row per epoch: epoch, loss, zero_shot_accuracy.
    """
    torch.manual_seed(seed)
    config = small_config(params.tower, data.images.shape[-1])
    clip = build_clip(config, antialias=True)
    clip.model.to(device(), memory_format=torch.channels_last)
    # A few dozen of 49,408 tokens occur: as random vectors they are told apart, and a quarter of each step is saved.
    clip.model.token_embedding.requires_grad_(False)
    trained = [p for p in clip.model.parameters() if p.requires_grad]
    rate = params.learning_rate
    optimiser = torch.optim.AdamW(trained, rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    batches = len(data) // min(params.batch_size, len(data))
    steps = params.epochs * batches
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps + 1, pct_start=0.3)
    tokens = clip.tokenizer(captions)

    def one_epoch(epoch: int, tick: Callable[[], None]) -> dict[str, float]:
        loss = converging(_one_epoch(clip, data, tokens, params, epoch, optimiser, schedule, seed, tick), clip.model)
        text = embed_prompts(clip, classes, params.prompts)
        return {"loss": loss, "zero_shot_accuracy": zero_shot(clip, validation, text)}

    inputs = (params.model_dump(), data.images, captions, seed)
    parts = {"model": clip.model, "optimiser": optimiser, "schedule": schedule}
    count = {"epochs": params.epochs, "batches": batches}
    # The last epoch is kept: nothing overfits here, and zero-shot accuracy on few images is noise.
    last = {"criterion": "zero_shot_accuracy", "keep": "last"}
    history = run_epochs("training CLIP", parts, one_epoch, *inputs, **count, **last)
    freeze(clip.model)
    return clip, config, history


def train_or_load(
    params: Clips, data: Split, captions: list[str] | None, validation: Split, classes: list[str], seed: int
) -> tuple[Clip, dict | None, pd.DataFrame]:
    """Train a CLIP, or load one, as the parameters say.

    Returns:
        The CLIP, frozen; its configuration if it was trained here; its history (of a loaded one a single row, epoch 0).
    """
    if params.source == "train":
        return train_clip(params, data, captions, validation, classes, seed)
    clip = load_clip(params)
    freeze(clip.model).to(device())
    score = zero_shot(clip, validation, keep_embeddings(clip, classes, params.prompts))
    return clip, None, pd.DataFrame([{"epoch": 0, "loss": float("nan"), "zero_shot_accuracy": score}])
