"""Training of classifiers: standard, fine-tuned, adversarial, or on noise (Cohen et al. 2019).

FGSM with random start is of Wong et al. 2020, PGD of Madry et al. 2018, TRADES of Zhang et al. 2019.
"""

from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR

from multishield.errors import UserError, reason_of
from multishield.forward import accuracy, check_repeatable, device, freeze
from multishield.images import Images
from paper.models import pretrained
from paper.models.classifier import Classifier
from paper.params.sections import Classifiers, Fit
from paper.training.epochs import attacked_scores, fit, need_images, noisy, perturb, train_epoch


def batch_loss(model: nn.Module, params: Fit, x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """The training loss of pixels (B,3,H,W) in [0,1] and labels (B,) at radius `eps`; 0 trains on clean images."""
    if eps == 0 or params.method == "standard":
        return F.cross_entropy(model(x), y)
    if params.method == "noise":
        return F.cross_entropy(model(noisy(x, params.sigma * (eps / params.eps), generator)), y)
    attack = (generator, eps, params.step_size * (eps / params.eps), 1 if params.method == "fgsm" else params.steps)
    if params.method != "trades":
        return F.cross_entropy(model(perturb(lambda z: F.cross_entropy(model(z), y), x, eps, *attack)), y)
    model.eval()
    with torch.no_grad():
        clean = F.log_softmax(model(x), 1)
    x_adv = perturb(lambda z: _kl(clean, model(z)), x, 1e-3, *attack)
    model.train()
    logits = model(x)
    # Both sides carry gradients: the regulariser smooths the clean output too (Zhang et al. 2019, eq. 5).
    return F.cross_entropy(logits, y) + params.beta * _kl(F.log_softmax(logits, 1), model(x_adv))


def _kl(clean_log_probabilities: Tensor, logits: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(logits, 1), clean_log_probabilities, log_target=True, reduction="batchmean")


def train_or_load(
    name: str, params: Classifiers, data: Images, validation: Images, classes: int, seed: int, resume: Path | None
) -> tuple[Classifier, pd.DataFrame]:
    """Train a classifier, resumably (see `fit`), or load it, as the parameters say.

    Returns the classifier, frozen, and a row per epoch: epoch, loss, clean_accuracy, noisy_accuracy (for noise alone),
    pgd_accuracy (not for fine-tuning), chosen. Accuracies are shares of the validation images. Adversarial training
    chooses the epoch by PGD accuracy, against robust overfitting (Rice et al. 2020), training on noise by accuracy
    under noise, other training by clean accuracy. A loaded classifier has one row, epoch 0. Raises UserError if there
    are no images to train on or to validate, or it cannot be loaded.
    """
    key = f"training.{name}"
    if params.source not in ("train", "finetune"):
        model = freeze(Classifier(*pretrained.load(params, classes, key))).to(device())
        usable(model, classes, data.images.shape[-1], key)
        return model, pd.DataFrame([{"epoch": 0, "clean_accuracy": accuracy(model, validation)}])
    need_images(f"{key}.source is {params.source!r}", train=data, validation=validation)
    torch.manual_seed(seed)
    scratch, batches, rate = params.source == "train", -(-len(data) // params.batch_size), params.learning_rate
    task, steps = f"training {name}", params.epochs * batches + 1
    model = Classifier(*pretrained.load(params, classes, key)).to(device())
    optimiser = torch.optim.SGD(model.parameters(), rate, 0.9, weight_decay=params.weight_decay, nesterov=scratch)
    schedule = OneCycleLR(optimiser, rate, total_steps=steps) if scratch else ConstantLR(optimiser, 1.0)

    def scores() -> dict[str, float]:
        row = {"clean_accuracy": accuracy(model.eval(), validation)}
        return row | attacked_scores(model, validation, params, seed) if scratch else row

    inputs = (params.model_dump(), model, data.images, data.labels, validation.images, classes, seed)
    one_epoch = partial(train_epoch, model, data, params, partial(batch_loss, model, params), seed)
    chosen_by = {"standard": "clean_accuracy", "noise": "noisy_accuracy"}
    criterion = chosen_by.get(params.method, "pgd_accuracy") if scratch else "clean_accuracy"
    history = fit(task, resume, inputs, model, schedule, params, batches, one_epoch, scores, criterion)
    return freeze(model), history


def usable(classifier: nn.Module, classes: int, side: int, key: str) -> None:
    """Check on a few images of noise that a classifier can be evaluated and attacked.

    Raises UserError if it fails on RGB images of that size, does not return K logits for each, has no gradient to the
    pixels, or answers differently when asked again.
    """
    x = torch.rand(6, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device()).requires_grad_()
    try:
        logits = classifier(x)
        if logits.shape != (len(x), classes):
            raise ValueError(f"it returns {tuple(logits.shape)}")
        torch.autograd.grad(logits.sum(), x)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        given = f"{key} cannot be used on RGB images {tuple(x.shape)} in [0,1]: {reason_of(error)}"
        raise UserError(f"{given}; it must return differentiable logits for the data set's {classes} classes") from None
    check_repeatable(classifier, x.detach(), key)
