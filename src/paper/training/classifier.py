"""Training of classifiers: standard, fast adversarial (FGSM with random start), PGD-k, TRADES, and fine-tuning.

Wong et al. 2020 (fast), Madry et al. 2018 (PGD), Zhang et al. 2019 (TRADES). The best epoch is chosen by PGD accuracy
on the validation split, against robust overfitting (Rice et al. 2020).
"""

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR

from multishield.answers import ask_twice
from multishield.attacks.pgd import pgd
from multishield.attacks.threat_model import Ball
from multishield.errors import UserError, reason_of
from multishield.forward import accuracy, device, freeze
from multishield.images import Split
from paper import paths
from paper.models import pretrained
from paper.models.cifar_resnet import build_network
from paper.models.classifier import Classifier, read_classifier, wrap
from paper.params import Checkpoint, Classifiers, FineTuned, Trained
from paper.training.attacked import grown, perturb
from paper.training.epochs import run_epochs, train_epoch


def batch_loss(
    model: nn.Module, x: Tensor, y: Tensor, params: Trained | FineTuned, eps: float, generator: torch.Generator
) -> Tensor:
    """The training loss of one batch.

    Args:
        x, y: pixels (B,3,H,W) in [0,1] and labels (B,).
        eps: the radius now (it is raised over the first epochs; 0 trains on clean images, as fine-tuning does).
    """
    if eps == 0 or params.method == "standard":
        return F.cross_entropy(model(x), y)
    scale = eps / params.eps
    noise = torch.rand(x.shape, generator=generator).to(x.device)
    step, steps = params.step_size * scale, 1 if params.method == "fgsm" else params.steps
    if params.method == "trades":
        model.eval()
        with torch.no_grad():
            clean = F.log_softmax(model(x), 1)
        start = Ball(eps).project(x + 1e-3 * (2 * noise - 1), x)
        x_adv = perturb(model, x, lambda z: _kl(clean, z), start, eps, step, steps)
        model.train()
        logits = model(x)
        # Both sides carry gradients: the regulariser smooths the clean output too (Zhang et al. 2019, eq. 5).
        return F.cross_entropy(logits, y) + params.beta * _kl(F.log_softmax(logits, 1), model(x_adv))
    start = Ball(eps).project(x + eps * (2 * noise - 1), x)
    x_adv = perturb(model, x, lambda z: F.cross_entropy(z, y), start, eps, step, steps)
    return F.cross_entropy(model(x_adv), y)


def _kl(clean_log_probabilities: Tensor, logits: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(logits, 1), clean_log_probabilities, log_target=True, reduction="batchmean")


def _radius(params: Trained | FineTuned, epoch: float) -> float:
    """The radius of the training attack after so many epochs; 0 for training on clean images."""
    if params.source == "finetune" or params.method == "standard":
        return 0.0
    return params.eps * grown(epoch, params.warmup_epochs)


def _validate(model: nn.Module, validation: Split, params: Trained | FineTuned, seed: int) -> dict[str, float]:
    """Clean accuracy and, but for fine-tuning, accuracy under PGD (steps of eps/4), as fractions of the split."""
    model.eval()
    scores = {"clean_accuracy": accuracy(model, validation)}
    if params.source == "finetune":
        return scores
    x, y, eps = validation.pixels, validation.labels, params.eps
    result = pgd(model, x, y, eps=eps, step_size=eps / 4, seed=seed, ids=validation.ids, steps=params.validation_steps)
    return scores | {"pgd_accuracy": 1 - result.success.float().mean().item()}


def _start(params: Trained | FineTuned, classes: int, key: str, steps: int):
    """The classifier before its training, its optimiser, and the learning rate's schedule over so many steps."""
    if params.source == "finetune":
        model = wrap(pretrained.new_head(params, classes, key)).to(device())
    else:
        model = Classifier(build_network(params.architecture, classes), params.mean, params.std).to(device())
    rate, trained = params.learning_rate, params.source == "train"
    optimiser = torch.optim.SGD(model.parameters(), rate, 0.9, weight_decay=params.weight_decay, nesterov=trained)
    if trained:
        return model, optimiser, OneCycleLR(optimiser, rate, total_steps=steps + 1, pct_start=0.3)
    return model, optimiser, ConstantLR(optimiser, factor=1.0)


def train(
    name: str, params: Trained | FineTuned, data: Split, validation: Split, classes: int, seed: int
) -> tuple[Classifier, pd.DataFrame]:
    """Train a classifier, resumably (see `run_epochs`).

    Args:
        name: shown in progress lines, names the state on disk.
        data, validation: the prepared splits; they may be larger than memory.
        classes: K.

    Returns:
        The classifier of the best epoch, frozen: best PGD accuracy for adversarial training, best clean accuracy for
        fine-tuning and standard training (whose PGD accuracy is noise around zero). And a row per epoch: epoch, loss,
        clean_accuracy, pgd_accuracy (not for fine-tuning; fractions of the validation split), chosen.
    """
    torch.manual_seed(seed)
    batches = -(-len(data) // params.batch_size)
    model, optimiser, schedule = _start(params, classes, f"training.{name}", params.epochs * batches)
    adversarial = params.source == "train" and params.method != "standard"
    criterion = "pgd_accuracy" if adversarial else "clean_accuracy"

    def loss_of(x: Tensor, y: Tensor, epoch: float, generator: torch.Generator) -> Tensor:
        return batch_loss(model, x, y, params, _radius(params, epoch), generator)

    def one_epoch(epoch: int, tick: Callable[[], None]) -> dict[str, float]:
        loss = train_epoch(model, data, params, epoch, loss_of, optimiser, schedule, seed, tick)
        return {"loss": loss, **_validate(model, validation, params, seed)}

    inputs = (params.model_dump(), model, data.images, data.labels, validation.images, classes, seed)
    parts = {"model": model, "optimiser": optimiser, "schedule": schedule}
    count = {"epochs": params.epochs, "batches": batches}
    history = run_epochs(f"training {name}", parts, one_epoch, *inputs, **count, criterion=criterion)
    return freeze(model), history


def train_or_load(
    name: str, params: Classifiers, data: Split, validation: Split, classes: int, seed: int
) -> tuple[Classifier, pd.DataFrame]:
    """Train a classifier, or load it from where the parameters say.

    Returns:
        The classifier, frozen, and its history; that of a loaded one is one row, epoch 0, with its clean accuracy on
        the validation split (NaN where that is empty).

    Raises:
        UserError: there is nothing to train on or to choose an epoch by, or it cannot be loaded.
    """
    if params.source in ("train", "finetune"):
        for key, split in (("train", data), ("validation", validation)):
            if not len(split):
                raise UserError(
                    f"training.{name}.source is {params.source!r}, but dataset.{key} is 0; training needs images, and "
                    "validation images to choose its epoch: raise it, or load a classifier that is trained already"
                )
        return train(name, params, data, validation, classes, seed)
    classifier = _loaded(name, params, classes, data.images.shape[-1])
    return classifier, pd.DataFrame([{"epoch": 0, "clean_accuracy": accuracy(classifier, validation)}])


def _loaded(name: str, params: Classifiers, classes: int, side: int) -> Classifier:
    """A classifier that needs no training, frozen. A UserError where it is not `usable`."""
    if isinstance(params, Checkpoint):
        classifier = read_classifier(paths.resolve(params.path), params.architecture, classes, params.mean, params.std)
    else:
        classifier = freeze(wrap(pretrained.load(params, classes, f"training.{name}"))).to(device())
    return usable(classifier, classes, side, f"training.{name}")


def usable(classifier: Classifier, classes: int, side: int, key: str) -> Classifier:
    """The same classifier, where it can be evaluated and attacked; it is tried on a few images of noise.

    Raises:
        UserError: it takes no RGB image of that size, does not return K logits per image, has no gradient to the
            pixels, or answers differently when asked again.
    """
    x = torch.rand(6, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device()).requires_grad_()
    try:
        logits = classifier(x)
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if shape == (len(x), classes):
            (gradient,) = torch.autograd.grad(logits.sum(), x, allow_unused=True)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{key} cannot be used: given RGB images ({len(x)}, 3, {side}, {side}) with values in [0,1], and asked for "
            f"the gradient of its logits, it fails with: {reason_of(error)}"
        ) from None
    if shape != (len(x), classes):
        raise UserError(
            f"{key} returns {shape} for {len(x)} images, but the data set has {classes} classes; it must return "
            f"({len(x)}, {classes}): one logit per class"
        )
    if gradient is None:
        raise UserError(
            f"{key} has no gradient to the pixels, so that every white-box attack on it would seem to fail; take out "
            ".detach() and no_grad"
        )
    ask_twice(classifier, x.detach(), key)
    return classifier
