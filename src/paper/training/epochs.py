"""Training epoch by epoch, the same for classifiers and CLIPs: resume, progress, and a row of history for each."""

import math
from collections.abc import Callable
from typing import Literal

import pandas as pd
import torch
from torch import Tensor, nn

from multishield.errors import UserError
from multishield.forward import device
from multishield.images import Split
from multishield.progress import progress
from multishield.resume import checkpoint
from paper.params import FineTuned, RobustTower, Trained
from paper.training.attacked import augment


def train_epoch(
    model: nn.Module,
    data: Split,
    params: Trained | FineTuned | RobustTower,
    epoch: int,
    loss_of: Callable[[Tensor, Tensor, float, torch.Generator], Tensor],
    optimiser,
    schedule,
    seed: int,
    tick: Callable[[], None],
) -> float:
    """Train one epoch on batches in random order; returns the mean loss, see `converging`.

    Args:
        loss_of: gets pixels (B,3,H,W), labels (B,), the epochs so far with their fraction, and the source of random
            numbers.
    """
    model.train()
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)  # resuming needs no generator state
    order = torch.randperm(len(data), generator=generator)
    batches = [b for b in order.split(params.batch_size) if len(b) > 1]  # batch norm needs two images
    total = 0.0
    for i, batch in enumerate(batches):
        x, y = data[batch].pixels, data.labels[batch].to(device())
        x = (augment(x, generator) if params.augment else x).to(device())
        loss = loss_of(x, y, epoch + i / len(batches), generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        total += loss.item() * len(batch)
        tick()
    return converging(total / len(data), model)


def converging(loss: float, model: nn.Module) -> float:
    """The mean loss of an epoch, where the epoch has left numbers behind.

    Raises:
        UserError: the loss or a weight is not finite.
    """
    weights = [w for w in model.state_dict().values() if w.is_floating_point()]
    if math.isfinite(loss) and all(bool(w.isfinite().all()) for w in weights):
        return loss
    raise UserError(
        f"the training has diverged: the mean loss of this epoch is {loss:.4g}, or weights are not finite; lower "
        "learning_rate or weight_decay, and see that the training images are what they should be"
    )


def run_epochs(
    task: str,
    parts: dict[str, object],
    one_epoch: Callable[[int, Callable[[], None]], dict],
    *inputs,
    epochs: int,
    batches: int,
    criterion: str,
    keep: Literal["best", "last"] = "best",
) -> pd.DataFrame:
    """Train; a killed run goes on after its last epoch and ends with the same bytes (on a CPU).

    Args:
        task: shown in the progress line, names the state on disk.
        parts: what changes while training, by name: the "model", and anything else that has a `state_dict`.
        one_epoch: gets the epoch's number, from 0, and a function to be called after each batch; returns the epoch's
            row of history, without its number. All its random numbers must come from the epoch's number.
        inputs: everything the result depends on (see `fingerprint`).
        epochs, batches: how many, and how many batches in each.
        criterion: the column that is best where it is highest; of equal epochs the last is taken.
        keep: whose weights the model has in the end.

    Returns:
        The history, a row per epoch with "epoch" from 1; where the best is kept, "chosen" says which that is.
    """
    rows, best = [], {}
    with checkpoint(task.replace(" ", "-"), *inputs) as kept:
        if state := kept.get("state"):
            for name, part in parts.items():
                part.load_state_dict(state["parts"][name])
            rows, best = state["rows"], state["best"]
        bar = progress(None, task, "batch", epochs * batches, len(rows) * batches)
        for epoch in range(len(rows), epochs):
            rows.append({"epoch": epoch + 1, **one_epoch(epoch, bar.update)})
            if rows[-1][criterion] >= max(r[criterion] for r in rows):
                best = {k: v.detach().cpu().clone() for k, v in parts["model"].state_dict().items()}
            states = {name: part.state_dict() for name, part in parts.items()}
            kept.put("state", {"parts": states, "rows": rows, "best": best})
            bar.set_postfix_str(f"epoch {epoch + 1}, validation {rows[-1][criterion]:.0%}")
        bar.close()
    history = pd.DataFrame(rows)
    if keep == "best":
        parts["model"].load_state_dict(best)
        history["chosen"] = history.index == history[criterion][::-1].idxmax()
    return history
