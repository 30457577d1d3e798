"""Training of classifiers: standard, fast adversarial (FGSM with random start), PGD-k, TRADES.

Wong et al. 2020 (fast), Madry et al. 2018 (PGD), Zhang et al. 2019 (TRADES). The best epoch is chosen by PGD accuracy
on the validation split, against robust overfitting (Rice et al. 2020).
"""

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multishield import paths
from multishield.attacks.base import Ball
from multishield.attacks.pgd import pgd
from multishield.classifiers import Classifier, accuracy, build_network, device, freeze, read_classifier
from multishield.dataset import Split
from multishield.files import write_atomically
from multishield.params import Checkpoint, Trained
from multishield.progress import progress
from multishield.resume import resume_folder


def _perturb(model: nn.Module, x: Tensor, loss_of, start: Tensor, eps: float, step: float, steps: int) -> Tensor:
    """Signed gradient ascent on `loss_of(logits)` from `start`, kept in the ball around x."""
    x_adv = start
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(model(x_adv)), x_adv)
        x_adv = Ball(eps).project(x_adv.detach() + step * gradient.sign(), x)
    return x_adv.detach()


def batch_loss(
    model: nn.Module, x: Tensor, y: Tensor, params: Trained, eps: float, generator: torch.Generator
) -> Tensor:
    """The training loss of one batch.

    Args:
        x, y: pixels (B,3,H,W) in [0,1] and labels (B,).
        eps: the radius now (it is raised over the first epochs; 0 trains on clean images).
    """
    if params.method == "standard" or eps == 0:
        return F.cross_entropy(model(x), y)
    scale = eps / params.eps
    noise = torch.rand(x.shape, generator=generator).to(x.device)
    step, steps = params.step_size * scale, 1 if params.method == "fgsm" else params.steps
    if params.method == "trades":
        model.eval()
        with torch.no_grad():
            clean = F.log_softmax(model(x), 1)
        start = Ball(eps).project(x + 1e-3 * (2 * noise - 1), x)
        x_adv = _perturb(model, x, lambda z: _kl(clean, z), start, eps, step, steps)
        model.train()
        logits = model(x)
        # Both sides carry gradients: the regulariser smooths the clean output too (Zhang et al. 2019, eq. 5).
        return F.cross_entropy(logits, y) + params.beta * _kl(F.log_softmax(logits, 1), model(x_adv))
    start = Ball(eps).project(x + eps * (2 * noise - 1), x)
    x_adv = _perturb(model, x, lambda z: F.cross_entropy(z, y), start, eps, step, steps)
    return F.cross_entropy(model(x_adv), y)


def _kl(clean_log_probabilities: Tensor, logits: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(logits, 1), clean_log_probabilities, log_target=True, reduction="batchmean")


def _augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random horizontal flips, and shifts by up to an eighth of the side with zero padding. One shift per batch
    would do for speed; one per image is what everyone means by a random crop."""
    flip = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)
    pad = x.shape[2] // 8
    padded = F.pad(x, (pad,) * 4)
    shifts = torch.randint(0, 2 * pad + 1, (2, len(x)), generator=generator)
    rows = shifts[0].view(-1, 1) + torch.arange(x.shape[2])
    columns = shifts[1].view(-1, 1) + torch.arange(x.shape[3])
    image = torch.arange(len(x)).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _one_epoch(model, split: Split, params: Trained, epoch: int, optimiser, schedule, generator, bar) -> float:
    """Train one epoch; returns the mean loss."""
    model.train()
    order = torch.randperm(len(split), generator=generator)
    batches = [b for b in order.split(params.batch_size) if len(b) > 1]  # batch norm needs two images
    total = 0.0
    for i, batch in enumerate(batches):
        x, y = split[batch].pixels, split.labels[batch].to(device())
        x = (_augment(x, generator) if params.augment else x).to(device())
        # At full eps from the first step FGSM training can stay at chance. The square keeps eps small until the network
        # has learned something.
        grown = min(1.0, (epoch + i / len(batches)) / params.warmup_epochs) ** 2 if params.warmup_epochs else 1.0
        loss = batch_loss(model, x, y, params, params.eps * grown, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        total += loss.item() * len(batch)
        bar.update()
    return total / len(split)


def _validate(model: nn.Module, validation: Split, eps: float, steps: int, seed: int) -> dict[str, float]:
    """Clean accuracy and accuracy under PGD (steps of eps/4), both as fractions of the validation split."""
    model.eval()
    x, y = validation.pixels, validation.labels
    result = pgd(model, x, y, eps=eps, step_size=eps / 4, seed=seed, ids=validation.ids, steps=steps)
    return {"clean_accuracy": accuracy(model, x, y), "pgd_accuracy": 1 - result.success.float().mean().item()}


def train(
    name: str, params: Trained, data: Split, validation: Split, classes: int, seed: int
) -> tuple[Classifier, pd.DataFrame]:
    """Train a classifier; a killed run goes on after its last epoch and ends with the same bytes.

    Args:
        name: shown in progress lines, names the state on disk.
        data, validation: the prepared splits.
        classes: K.

    Returns:
        The classifier of the best epoch, frozen: best PGD accuracy for adversarial training, best clean accuracy for
        standard training (whose PGD accuracy is noise around zero). And a row per epoch: epoch, loss,
        clean_accuracy, pgd_accuracy (fractions of the validation split), chosen.
    """
    torch.manual_seed(seed)
    model = Classifier(build_network(params.architecture, classes), params.mean, params.std).to(device())
    optimiser = torch.optim.SGD(
        model.parameters(), params.learning_rate, 0.9, weight_decay=params.weight_decay, nesterov=True
    )
    batches = -(-len(data) // params.batch_size)
    steps = params.epochs * batches
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, params.learning_rate, total_steps=steps + 1, pct_start=0.3
    )
    criterion = "clean_accuracy" if params.method == "standard" else "pgd_accuracy"
    rows, best = [], {}
    inputs = (params.model_dump(), data.images, data.labels, validation.images, classes, seed)
    with resume_folder(f"training-{name}", *inputs) as folder:
        state_file = folder / "state.pt"
        if state_file.exists():
            state = torch.load(state_file, weights_only=True)
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            schedule.load_state_dict(state["schedule"])
            rows, best = state["rows"], state["best"]
        bar = progress(None, f"training {name}", "batch", steps, len(rows) * batches)
        for epoch in range(len(rows), params.epochs):
            generator = torch.Generator().manual_seed(seed * 100_003 + epoch)  # resuming needs no generator state
            loss = _one_epoch(model, data, params, epoch, optimiser, schedule, generator, bar)
            rows.append(
                {
                    "epoch": epoch + 1,
                    "loss": loss,
                    **_validate(model, validation, params.eps, params.validation_steps, seed),
                }
            )
            if rows[-1][criterion] >= max(r[criterion] for r in rows):
                best = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
            _keep(state_file, model, optimiser, schedule, rows, best)
            bar.set_postfix_str(f"epoch {epoch + 1}, validation {rows[-1][criterion]:.0%}")
        bar.close()
    model.load_state_dict(best)
    history = pd.DataFrame(rows)
    top = history[criterion].max()
    history["chosen"] = history.index == history.index[history[criterion] == top][-1]
    return freeze(model), history


def _keep(path: Path, model, optimiser, schedule, rows, best) -> None:
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "rows": rows,
        "best": best,
    }
    write_atomically(path, lambda p: torch.save(state, p))


def obtain(
    name: str, params: Trained | Checkpoint, data: Split, validation: Split, classes: int, seed: int
) -> tuple[Classifier, pd.DataFrame]:
    """Train a classifier, or load its checkpoint, as the parameters say.

    Returns:
        The classifier, frozen, and its history; that of a checkpoint is one row, epoch 0, with its clean accuracy.
    """
    if params.source == "train":
        return train(name, params, data, validation, classes, seed)
    classifier = read_classifier(paths.resolve(params.path), params.architecture, classes, params.mean, params.std)
    score = accuracy(classifier, validation.pixels, validation.labels)
    return classifier, pd.DataFrame([{"epoch": 0, "clean_accuracy": score}])
