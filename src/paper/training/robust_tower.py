"""Adversarial training of a CLIP's image tower. The text side stays as it is.

TeCoA (Mao et al. 2023) lowers the cross-entropy of attacked images' class scores. FARE (Schlarmann et al. 2024) needs
no labels: an attacked image's embedding stays near the one that the original tower gave the clean image. Instead of an
attack there may be Gaussian noise (Cohen et al. 2019).
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from multishield.forward import accuracy, device, freeze
from multishield.images import Images
from multishield.zero_shot import Clip, align
from paper.params.sections import Fit
from paper.training.epochs import attacked_scores, fit, need_images, noisy, perturb, train_epoch


def tower_loss(alignment: nn.Module, scale: float, original: Callable, x: Tensor, y: Tensor, method: str) -> Callable:
    """The loss that the attack raises and the training lowers, as a function of attacked pixels (B,3,H,W).

    `scale` is the temperature that CLIP has learned; `original` maps pixels to embeddings (B,D) before the training.
    """
    if method != "fare":
        return lambda x_adv: F.cross_entropy(scale * alignment(x_adv), y)
    with torch.no_grad():
        wanted = original(x)
    return lambda x_adv: (alignment.embed(x_adv) - wanted).square().sum(1).mean()


def harden(
    clip: Clip, params: Fit | None, data: Images, validation: Images, text: Tensor, seed: int, resume: Path | None
) -> pd.DataFrame:
    """Train the image tower of a CLIP adversarially, in place and resumably (see `fit`), and freeze it.

    `params` is a `RobustTower`; None leaves the tower as it is. `text` holds text embeddings (K,D). PGD accuracy on the
    validation images chooses the epoch, for noise the accuracy under noise. Returns a row per epoch: epoch, loss,
    zero_shot_accuracy, noisy_accuracy (for noise alone), pgd_accuracy, chosen.
    """
    if not params:
        return pd.DataFrame()
    need_images("alignment.robust trains an image tower", train=data, validation=validation)
    torch.manual_seed(seed)
    alignment, scale = align(clip, text).to(device()), float(clip.model.logit_scale.detach().exp())
    original = freeze(copy.deepcopy(alignment)).embed
    tower, rate = clip.model.visual.requires_grad_(True), params.learning_rate
    optimiser = torch.optim.AdamW(tower.parameters(), rate, weight_decay=params.weight_decay)
    batches = sum(len(b) > 1 for b in torch.arange(len(data)).split(params.batch_size))
    # The learning rate rises over a tenth of all steps; then it falls as a cosine.
    schedule = OneCycleLR(optimiser, rate, total_steps=params.epochs * batches + 1, pct_start=0.1, cycle_momentum=False)

    def loss_of(x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        loss, size = tower_loss(alignment, scale, original, x, y, params.method), params.step_size * eps / params.eps
        if params.method == "noise":
            return loss(noisy(x, params.sigma * eps / params.eps, generator))
        return loss(perturb(loss, x, eps, generator, eps, size, params.steps))

    def scores() -> dict[str, float]:
        row = {"zero_shot_accuracy": accuracy(alignment.eval(), validation)}
        return row | attacked_scores(alignment, validation, params, seed, scale)

    inputs = (params.model_dump(), clip.model, text, data.images, data.labels, validation.images, seed)
    task, one_epoch = "training the robust tower", partial(train_epoch, tower, data, params, loss_of, seed)
    criterion = "noisy_accuracy" if params.method == "noise" else "pgd_accuracy"
    history = fit(task, resume, inputs, tower, schedule, params, batches, one_epoch, scores, criterion)
    freeze(clip.model)
    return history
