"""Attacks on many images that can be killed: what is finished is kept, what is not is begun again."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from multishield.attacks.loop.result import AttackResult
from multishield.storage.checkpoints import resume_folder
from multishield.storage.files import load_tensors, save_tensors
from multishield.storage.progress import progress


def attack_resumably(
    task: str, attack: Callable[[torch.Tensor, Callable], object], total: int, *inputs, every: float = 20.0
) -> AttackResult:
    """Attack `total` images; those that are finished are kept on disk every `every` seconds.

    A killed run goes on with the images that are left. Because an image's result depends on the image alone (on a CPU
    bit for bit, see `classifiers.forward`), it ends with the same bytes.

    Args:
        task: a name for the progress line and the folder.
        attack: gets indices (B,) of images and a `watch`, which it hands to `attacks.engine.ascend`.
        inputs: everything the result depends on (see `fingerprint`).
    """
    with resume_folder(task, total, *inputs) as folder:
        done = _kept(folder)
        left = torch.ones(total, dtype=torch.bool)
        left[done.get("index", slice(0))] = False
        watch = _Watch(task, folder, left.nonzero()[:, 0], total, int(sum(done.get("success", []))), every)
        if left.any():
            attack(watch.left, watch)
        watch.close()
        whole = _kept(folder)
    order = whole["index"].argsort()
    forwards, backwards = whole["passes"][order].T
    return AttackResult(whole["images"][order], whole["success"][order], forwards, backwards)


def _kept(folder: Path) -> dict[str, torch.Tensor]:
    parts = [load_tensors(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]} if parts else {}


class _Watch:
    """Called by the engine after every step: keeps what is finished, and shows one line of progress."""

    def __init__(self, task: str, folder: Path, left: torch.Tensor, total: int, broken: int, every: float):
        self.folder, self.left, self.total, self.every = folder, left, total, every
        self.finished, self.broken, self.waiting = total - len(left), broken, []
        self.written, self.bar = time.monotonic(), progress(None, task, "step")

    def __call__(self, indices, images, success, passes, steps_left: int) -> None:
        if len(indices):
            self.finished += len(indices)
            self.broken += int(success.sum())
            self.waiting.append({"index": self.left[indices], "images": images, "success": success, "passes": passes})
        self._show(steps_left)
        if self.waiting and time.monotonic() - self.written > self.every:
            self._keep()

    def close(self) -> None:
        """Keep what is waiting, and end the line."""
        if self.waiting:
            self._keep()
        self.bar.close()

    def _show(self, steps_left: int) -> None:
        # In steps, because that is what takes time: a broken image gives back all the steps that it no longer needs.
        self.bar.total = self.bar.total or steps_left
        self.bar.update(self.bar.total - steps_left - self.bar.n)
        standing = (self.total - self.broken) / self.total
        self.bar.set_postfix_str(
            f"{self.total - self.finished} images left, robust so far {standing:.0%}", refresh=False
        )

    def _keep(self) -> None:
        part = {name: torch.cat([w[name] for w in self.waiting]) for name in self.waiting[0]}
        number = len(list(self.folder.glob("*.safetensors")))
        save_tensors(self.folder / f"{number:06d}.safetensors", part)
        self.waiting, self.written = [], time.monotonic()
