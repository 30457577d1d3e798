"""Attacks on many images that can be killed: what is finished is kept, what is not is begun again."""

import time
from collections.abc import Callable

import torch

from multishield.attacks.loop.result import AttackedImages
from multishield.storage.checkpoints import Checkpoint, checkpoint
from multishield.storage.progress import progress


def attack_resumably(
    task: str, attack: Callable[[torch.Tensor, Callable], object], total: int, *inputs, every: float = 20.0
) -> AttackedImages:
    """Attack `total` images; those that are finished are kept on disk every `every` seconds.

    A killed run goes on with the images that are left. Because an image's result depends on the image alone (on a CPU
    bit for bit, see `classifier.forward`), it ends with the same bytes.

    Args:
        task: a name for the progress line and the folder.
        attack: gets indices (B,) of images and a `watch`, which it hands to `attacks.loop.ascend`.
        inputs: everything the result depends on (see `fingerprint`).
    """
    with checkpoint(task, total, *inputs) as kept:
        index, found = _finished(kept)
        left = torch.ones(total, dtype=torch.bool)
        left[index] = False
        watch = _Watch(task, kept, left.nonzero()[:, 0], total, sum(int(p.success.sum()) for p in found), every)
        if left.any():
            attack(watch.left, watch)
        watch.keep()
        watch.bar.close()
        index, found = _finished(kept)
    return AttackedImages.joined(found)[index.argsort()]


def _finished(kept: Checkpoint) -> tuple[torch.Tensor, list[AttackedImages]]:
    """Indices of the images that are finished, and what became of them, in the same order."""
    parts = kept.values()
    indices = [p["index"] for p in parts]
    return torch.cat([torch.empty(0, dtype=torch.long), *indices]), [AttackedImages.of_tensors(p) for p in parts]


class _Watch:
    """Called by the loop after every step: keeps what is finished, and shows one line of progress."""

    def __init__(self, task: str, kept: Checkpoint, left: torch.Tensor, total: int, broken: int, every: float):
        self.kept, self.left, self.total, self.every = kept, left, total, every
        self.finished, self.broken, self.waiting = total - len(left), broken, []
        self.written, self.bar = time.monotonic(), progress(None, task, "step")

    def __call__(self, indices: torch.Tensor, found: AttackedImages, steps_left: int) -> None:
        if len(indices):
            self.finished += len(indices)
            self.broken += int(found.success.sum())
            self.waiting.append((self.left[indices], found))
        # In steps, because that is what takes time: a broken image gives back all the steps that it no longer needs.
        self.bar.total = self.bar.total or steps_left
        self.bar.update(self.bar.total - steps_left - self.bar.n)
        standing = (self.total - self.broken) / self.total
        words = f"{self.total - self.finished} images left, robust so far {standing:.0%}"
        self.bar.set_postfix_str(words, refresh=False)
        if time.monotonic() - self.written > self.every:
            self.keep()

    def keep(self) -> None:
        """Write what is waiting."""
        if not self.waiting:
            return
        indices, found = zip(*self.waiting, strict=True)
        part = AttackedImages.joined(list(found)).tensors() | {"index": torch.cat(indices)}
        self.kept.put(f"{self.finished:08d}", part)  # how many are finished by now: a name of its own each time
        self.waiting, self.written = [], time.monotonic()
