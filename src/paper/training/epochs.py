"""Training epoch by epoch: resume, progress, a row of history for each; and the images of adversarial training."""

import math
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multishield.attacks.pgd import pgd
from multishield.attacks.threat_model import Ball
from multishield.errors import UserError
from multishield.forward import accuracy, device
from multishield.images import Images
from multishield.progress import progress
from multishield.resume import Checkpoint
from paper.params.sections import Fit


def fit(
    task: str, resume, inputs: tuple, model: nn.Module, schedule, params: Fit, steps: int, one_epoch, scores, criterion
) -> pd.DataFrame:
    """Train epoch by epoch. A killed run goes on after its last one and ends with the same bytes (on a CPU).

    For `resume`, `task` and `inputs` see `Checkpoint`. The schedule holds the optimiser; an epoch has so many steps.
    `one_epoch(epoch, step)` returns the mean loss. It calls `step` with the loss of each batch, and with a limit of the
    gradient's norm if there is one. All its random numbers must come from the number of the epoch, which starts at 0.

    Returns a row per epoch, from 1: epoch, loss, `scores()`. With a criterion, one of the scores, the model gets the
    weights of its best epoch, and the column "chosen" says which it was; of equals it is the last. Raises UserError if
    the loss or a weight is not finite.
    """
    states = {"model": model, "optimiser": schedule.optimizer, "schedule": schedule}
    checkpoint = Checkpoint(resume, task, *inputs)
    saved = checkpoint.get("state") or {"states": {}, "rows": [], "best": {}}
    for name, state in saved["states"].items():
        states[name].load_state_dict(state)
    rows, best = saved["rows"], saved["best"]
    bar = progress(None, task, "batch", params.epochs * steps, len(rows) * steps)

    def step(loss: Tensor, max_norm: float | None = None) -> float:
        schedule.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if max_norm:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        schedule.optimizer.step()
        schedule.step()
        bar.update()
        return loss.item()

    for epoch in range(len(rows), params.epochs):
        loss = one_epoch(epoch, step)
        if not (math.isfinite(loss) and all(bool(w.isfinite().all()) for w in model.state_dict().values())):
            given = f"the training has diverged: the mean loss of this epoch is {loss:.4g}, or weights are not finite"
            raise UserError(f"{given}; lower learning_rate or weight_decay, and check the training images")
        rows.append({"epoch": epoch + 1, "loss": loss, **scores()})
        if criterion and rows[-1][criterion] >= max(row[criterion] for row in rows):
            best = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        now = {name: state.state_dict() for name, state in states.items()}
        checkpoint.put("state", {"states": now, "rows": rows, "best": best})
        bar.set_postfix_str(f"epoch {epoch + 1}, loss {loss:.3g}")
    bar.close()
    history = pd.DataFrame(rows)
    if criterion:
        model.load_state_dict(best)
        history["chosen"] = history.index == history[criterion][::-1].idxmax()
    return history


def train_epoch(model: nn.Module, data: Images, params: Fit, loss_of, seed: int, epoch: int, step: Callable) -> float:
    """Train one epoch on batches in random order, see `fit`; returns the mean loss.

    `loss_of` gets pixels (B,3,H,W), labels (B,), the radius (0 without an attack) and the source of random numbers.
    """
    model.train()
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)  # resuming needs no generator state
    order = torch.randperm(len(data), generator=generator)
    batches = [b for b in order.split(params.batch_size) if len(b) > 1]  # batch norm needs two images
    total, warmup = 0.0, getattr(params, "warmup_epochs", 0)  # with the full radius from the start FGSM can fail
    for i, batch in enumerate(batches):
        x, y = data[batch].pixels, data.labels[batch].to(device())
        x = (augment(x, generator) if params.augment else x).to(device())
        share = min(1.0, (epoch + i / len(batches)) / warmup) ** 2 if warmup else 1.0
        total += step(loss_of(x, y, getattr(params, "eps", 0.0) * share, generator)) * len(batch)
    return total / len(data)


def need_images(given: str, **splits: Images) -> None:
    """Raises UserError if a split is empty; `given` is the beginning of the sentence."""
    for key, split in splits.items():
        if not len(split):
            raise UserError(f"{given}, which needs images, but dataset.{key} is 0; raise it, or train nothing")


def perturb(
    loss_of: Callable, x: Tensor, noise: float, generator: torch.Generator, eps: float, step: float, steps: int
) -> Tensor:
    """Signed gradient ascent on `loss_of(x_adv)` in the Linf ball around x (B,3,H,W), from x with uniform noise."""
    ball, uniform = Ball(eps), 2 * torch.rand(x.shape, generator=generator).to(x.device) - 1
    x_adv = ball.project(x + noise * uniform, x)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(x_adv), x_adv)
        x_adv = ball.project(x_adv.detach() + step * gradient.sign(), x)
    return x_adv.detach()


def noisy(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Pixels with Gaussian noise of the standard deviation `sigma`, not cut off (Cohen et al. 2019)."""
    return x + sigma * torch.randn(x.shape, generator=generator).to(x.device)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random horizontal flips, and shifts by up to an eighth of the side with zero padding, drawn for each image."""
    flip = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)
    pad, side = x.shape[2] // 8, x.shape[2]
    windows = F.pad(x, (pad,) * 4).unfold(2, side, 1).unfold(3, side, 1)  # (B,3,shifts,shifts,side,side)
    rows, columns = torch.randint(0, 2 * pad + 1, (2, len(x)), generator=generator)
    return windows[torch.arange(len(x)), :, rows, columns].contiguous()


def attacked_scores(model: nn.Module, data: Images, params, seed: int, scale: float = 1.0) -> dict[str, float]:
    """Accuracies under noise, for training on noise alone, and under PGD with steps of eps/4 on `scale` times the
    outputs; shares of the images. `params` has eps, method, sigma and validation_steps."""
    images = noisy(data.pixels, params.sigma, torch.Generator().manual_seed(seed))  # the same after each epoch
    noise = {"noisy_accuracy": accuracy(model, replace(data, images=images))} if params.method == "noise" else {}
    rule = {"ball": Ball(params.eps), "steps": params.validation_steps, "step_size": params.eps / 4}
    result = pgd(lambda x: scale * model(x), data.pixels, data.labels, seed=seed, ids=data.ids, **rule)
    return noise | {"pgd_accuracy": 1 - result.success.float().mean().item()}
