"""Attacks on many images that can be killed: what is finished is kept, what is not is begun again."""

import time
from collections.abc import Callable

import torch
from torch import nn

from multishield.images import AttackedImages
from multishield.progress import progress
from multishield.resume import Checkpoint, checkpoint
from paper.workers.spread import Work, spread

# Images in a piece of work: at its end few are left in a batch, which costs as much as some 30 images more. And bytes
# of clean images at once: the rest is not in memory yet.
AT_LEAST, AT_ONCE = 128, 2**29


def attack_resumably(
    task: str,
    attack: Work,
    model: nn.Module,
    pick: Callable[[torch.Tensor], object],
    total: int,
    *inputs,
    bytes_each: int = 2**19,
    costs: torch.Tensor | None = None,
    every: float = 20.0,
) -> AttackedImages:
    """Attack `total` images, by as many workers as are wanted; what is finished is kept on disk every `every` seconds.

    A killed run goes on with the images that are left. Because an image's result depends on the image alone (on a CPU
    bit for bit, see `classifier.forward`), it ends with the same bytes, whoever has computed it.

    Args:
        task: a name for the progress line and the folder.
        attack: gets the model, what was picked, and a `watch`, which it hands to `attacks.loop.ascend`.
        model, pick: see `spread`; `pick` gets indices (B,) of images.
        inputs: everything the result depends on (see `fingerprint`).
        bytes_each: of a clean image as it is picked. costs: guesses (N,); see `spread`.
    """
    with checkpoint(task, total, *inputs) as kept:
        index, found = _finished(kept)
        left = torch.ones(total, dtype=torch.bool)
        left[index] = False
        left = left.nonzero()[:, 0].tolist()
        watch = _Watch(task, kept, total - len(left), total, sum(int(p.success.sum()) for p in found), every)
        try:
            spread(
                attack,
                model,
                lambda numbers: pick(torch.tensor(numbers)),
                left,
                watch,
                at_least=AT_LEAST,
                at_most=max(1, AT_ONCE // bytes_each),
                costs=None if costs is None else costs[left].tolist(),
            )
        finally:  # where it fails, too: images since the last writing are finished, and the line ends before the error
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
    """Called after every step: keeps what is finished, and shows one line of progress."""

    def __init__(self, task: str, kept: Checkpoint, finished: int, total: int, broken: int, every: float):
        self.kept, self.total, self.every = kept, total, every
        self.finished, self.broken, self.waiting = finished, broken, []
        self.written, self.bar = time.monotonic(), progress(None, task, "step")

    def __call__(self, images: list[int], found: AttackedImages, steps_left: float, who: str) -> None:
        if images:
            self.finished += len(images)
            self.broken += int(found.success.sum())
            self.waiting.append((torch.tensor(images), found))
        # In steps, because that is what takes time: a broken image gives back all the steps that it no longer needs.
        self.bar.total = max(self.bar.total or 0, round(steps_left))
        self.bar.update(self.bar.total - round(steps_left) - self.bar.n)
        standing = (self.total - self.broken) / self.total
        words = f"{self.total - self.finished} images left, robust so far {standing:.0%}" + (f", {who}" if who else "")
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
