"""Image towers trained adversarially, for a CLIP that is trained here or loaded: TeCoA and FARE.

The text side stays as it is. TeCoA (Mao et al. 2023) trains on the labels: the cross-entropy of the class scores of
attacked images. FARE (Schlarmann et al. 2024) needs none: an attacked image's embedding stays near the one that the
original tower gave the clean image.
"""

import copy
from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multishield.attacks.pgd import pgd
from multishield.attacks.threat_model import Ball
from multishield.errors import UserError
from multishield.forward import accuracy, device, freeze
from multishield.images import Split
from paper.models.clip import Clip
from paper.models.zero_shot import ZeroShotClassifier, align
from paper.params import RobustTower
from paper.params.choices import ByParameter
from paper.training.attacked import grown, perturb
from paper.training.epochs import run_epochs, train_epoch

WARM = 0.1  # of all steps, over which the learning rate rises; then it falls as a cosine


class Logits(nn.Module):
    """CLIP's class probabilities before the softmax: cosines (B,K) times the temperature that CLIP has learned."""

    def __init__(self, alignment: ZeroShotClassifier, scale: float):
        super().__init__()
        self.alignment, self.scale = alignment, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.alignment(x)


def tower_loss(model: Logits, original: nn.Module, clean: Tensor, y: Tensor, params: RobustTower) -> Callable:
    """What the attack raises and the training lowers: a function of attacked pixels (B,3,H,W), to a number.

    Args:
        original: pixels to embeddings (B,D), as before the training.
        clean, y: the clean pixels and their labels (B,).
    """
    if params.method == "tecoa":
        return lambda x: F.cross_entropy(model(x), y)
    with torch.no_grad():
        wanted = original(clean)
    return lambda x: (model.alignment.embed(x) - wanted).square().sum(1).mean()


def _validate(model: Logits, validation: Split, params: RobustTower, seed: int) -> dict[str, float]:
    """Zero-shot accuracy, clean and under PGD (steps of eps/4), as fractions of the split."""
    model.eval()
    steps = {"eps": params.eps, "step_size": params.eps / 4, "steps": params.validation_steps}
    result = pgd(model, validation.pixels, validation.labels, seed=seed, ids=validation.ids, **steps)
    robust = 1 - result.success.float().mean().item()
    return {"zero_shot_accuracy": accuracy(model, validation), "pgd_accuracy": robust}


def _harden(clip: Clip, params: RobustTower, data: Split, validation: Split, text: Tensor, seed: int) -> pd.DataFrame:
    for key, split in (("train", data), ("validation", validation)):
        if not len(split):
            raise UserError(
                f"alignment.robust trains an image tower, but dataset.{key} is 0; training needs images, and "
                "validation images to choose its epoch: raise it, or take alignment.robust out"
            )
    torch.manual_seed(seed)
    model = Logits(align(clip, text), float(clip.model.logit_scale.detach().exp())).to(device())
    original = freeze(copy.deepcopy(model.alignment)).embed
    tower = clip.model.visual.requires_grad_(True)
    optimiser = torch.optim.AdamW(tower.parameters(), params.learning_rate, weight_decay=params.weight_decay)
    batches = sum(len(b) > 1 for b in torch.arange(len(data)).split(params.batch_size))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, params.learning_rate, total_steps=params.epochs * batches + 1, pct_start=WARM, cycle_momentum=False
    )

    def loss_of(x: Tensor, y: Tensor, epoch: float, generator: torch.Generator) -> Tensor:
        eps = params.eps * grown(epoch, params.warmup_epochs)
        noise = 2 * torch.rand(x.shape, generator=generator).to(x.device) - 1
        loss, step = tower_loss(model, original, x, y, params), params.step_size * eps / params.eps
        start = Ball(eps).project(x + eps * noise, x)
        return loss(perturb(loss, x, lambda value: value, start, eps, step, params.steps))

    def one_epoch(epoch: int, tick: Callable[[], None]) -> dict[str, float]:
        loss = train_epoch(model, data, params, epoch, loss_of, optimiser, schedule, seed, tick)
        return {"loss": loss, **_validate(model, validation, params, seed)}

    inputs = (params.model_dump(), clip.model, text, data.images, data.labels, validation.images, seed)
    parts = {"model": tower, "optimiser": optimiser, "schedule": schedule}
    count = {"epochs": params.epochs, "batches": batches}
    history = run_epochs("training the robust tower", parts, one_epoch, *inputs, **count, criterion="pgd_accuracy")
    freeze(clip.model)
    return history


# Where params.yaml names none of them, no code of this training is part of what the alignment depends on.
METHODS = ByParameter({"tecoa": _harden, "fare": _harden})


def harden(
    clip: Clip, params: RobustTower | None, data: Split, validation: Split, text: Tensor, seed: int
) -> pd.DataFrame:
    """Train the image tower of a CLIP adversarially, in place and resumably (see `run_epochs`); None leaves it alone.

    Args:
        clip: frozen; it is frozen again afterwards, its tower with the weights of the best epoch by PGD accuracy.
        text: text embeddings (K,D), normalised per class.

    Returns:
        A row per epoch: epoch, loss, zero_shot_accuracy, pgd_accuracy (fractions of the validation split), chosen.

    Raises:
        UserError: there are no images to train on or to choose an epoch by, or the training diverges.
    """
    return METHODS[params.method](clip, params, data, validation, text, seed) if params else pd.DataFrame()
