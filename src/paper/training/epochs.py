"""Training epoch by epoch, the same for classifiers and CLIPs: resume, progress, and a row of history for each."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from multishield.errors import UserError
from multishield.forward import device
from multishield.images import Images
from multishield.progress import progress
from multishield.resume import Checkpoint
from paper.params.sections import Fit
from paper.training.attacked import augment


class Epochs:
    """The epochs of a training. A killed run goes on after its last one and ends with the same bytes (on a CPU).

    Iterate over it for the numbers of the epochs that are left, from 0, and call `end` after each. All random numbers
    of an epoch must come from its number. For `resume`, `task` and `inputs` see `Checkpoint`. `states` are "model",
    "optimiser" and "schedule". The best epoch is highest in the history's column `criterion`.
    """

    def __init__(self, task: str, resume: Path | None, inputs, states: dict, count: int, batches: int, criterion: str):
        self.states, self.count, self.criterion = states, count, criterion
        self.checkpoint = Checkpoint(resume, task, *inputs)
        saved = self.checkpoint.get("state") or {"states": {}, "rows": [], "best": {}}
        for name, state in saved["states"].items():
            states[name].load_state_dict(state)
        self.rows, self.best = saved["rows"], saved["best"]
        self.bar = progress(None, task, "batch", count * batches, len(self.rows) * batches)

    def __iter__(self) -> Iterator[int]:
        yield from range(len(self.rows), self.count)
        self.bar.close()

    def step(self, loss: Tensor, max_norm: float | None = None) -> None:
        """One step of the optimiser, with gradients of at most that norm."""
        self.states["optimiser"].zero_grad(set_to_none=True)
        loss.backward()
        if max_norm:
            nn.utils.clip_grad_norm_(self.states["model"].parameters(), max_norm)
        self.states["optimiser"].step()
        self.states["schedule"].step()
        self.bar.update()

    def end(self, row: dict[str, float]) -> None:
        """Keep an epoch and its row of history; of equally good epochs the last is the best."""
        self.rows.append({"epoch": len(self.rows) + 1, **row})
        score = row[self.criterion]
        if score >= max(r[self.criterion] for r in self.rows):
            self.best = {k: v.detach().cpu().clone() for k, v in self.states["model"].state_dict().items()}
        states = {name: state.state_dict() for name, state in self.states.items()}
        self.checkpoint.put("state", {"states": states, "rows": self.rows, "best": self.best})
        self.bar.set_postfix_str(f"epoch {len(self.rows)}, validation {score:.0%}")

    def best_history(self) -> pd.DataFrame:
        """Load the best epoch into the model. Returns a row per epoch, from 1; "chosen" says which was the best."""
        history = pd.DataFrame(self.rows)
        self.states["model"].load_state_dict(self.best)
        return history.assign(chosen=history.index == history[self.criterion][::-1].idxmax())


def train_epoch(epochs: Epochs, epoch: int, data: Images, params: Fit, loss_of: Callable, seed: int) -> float:
    """Train one epoch on batches in random order; returns the mean loss (see `converging`).

    `loss_of` gets pixels (B,3,H,W), labels (B,), the epochs so far with a fraction, and the source of random numbers.
    """
    model = epochs.states["model"].train()
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)  # resuming needs no generator state
    order = torch.randperm(len(data), generator=generator)
    batches = [b for b in order.split(params.batch_size) if len(b) > 1]  # batch norm needs two images
    total = 0.0
    for i, batch in enumerate(batches):
        x, y = data[batch].pixels, data.labels[batch].to(device())
        x = (augment(x, generator) if params.augment else x).to(device())
        loss = loss_of(x, y, epoch + i / len(batches), generator)
        epochs.step(loss)
        total += loss.item() * len(batch)
    return converging(total / len(data), model)


def converging(loss: float, model: nn.Module) -> float:
    """The mean loss of an epoch. Raises UserError if the loss or a weight is not finite."""
    weights = [w for w in model.state_dict().values() if w.is_floating_point()]
    if math.isfinite(loss) and all(bool(w.isfinite().all()) for w in weights):
        return loss
    given = f"the training has diverged: the mean loss of this epoch is {loss:.4g}, or weights are not finite"
    raise UserError(f"{given}; lower learning_rate or weight_decay, and check the training images")


def need_images(given: str, remedy: str, **splits: Images) -> None:
    """Raises UserError if a split is empty; `given` and `remedy` are the beginning and the end of the sentence."""
    reason = "training needs images, and validation images to choose its epoch"
    for key, split in splits.items():
        if not len(split):
            raise UserError(f"{given}, but dataset.{key} is 0; {reason}: raise it, or {remedy}")
