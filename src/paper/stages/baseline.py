"""Stage 4, scenario 1: AutoAttack on the classifier alone."""

from functools import cached_property, partial

import pandas as pd
import torch
from torch import Tensor, nn

from multishield import records
from multishield.errors import UserError
from multishield.images import AttackedImages, Images
from multishield.progress import progress
from multishield.resume import Checkpoint
from paper.models.classifier import load_classifier
from paper.params.values import AA_STANDARD
from paper.stages.autoattack import autoattack
from paper.stages.base import Base


class Stage(Base):
    """See `Base`; the item is the classifier."""

    @cached_property
    def classifier(self) -> nn.Module:
        """The classifier, frozen."""
        return load_classifier(self.item)

    def attack(self) -> None:
        """AutoAttack on all images, in batches of fixed size: its random numbers, and so its results, depend on them.

        Raises UserError if a batch does not fit into the memory of the device.
        """
        size = self.params.baseline.batch_size
        for chunk in self.data.chunks(multiple=size):
            self.unaware.add(chunk.start, self._attack(self.data[chunk], size))

    def _attack(self, data: Images, size: int) -> AttackedImages:
        """Attack the batches of a chunk; a killed call continues after the last complete one."""
        chosen = self.params.baseline.attacks
        attacks, task = AA_STANDARD if chosen == "standard" else tuple(chosen), f"baseline {self.item}"
        options = {"attacks": attacks, "ball": self.ball, "seed": self.params.seed}
        checkpoint = Checkpoint(self.resume, task, self.classifier, data.images, data.labels, options, size)
        batches = {f"{start:08d}": data[start : start + size] for start in range(0, len(data), size)}
        finished = {name: checkpoint.get(name) for name in batches}
        left = [(name, batch) for name, batch in batches.items() if finished[name] is None]
        with progress(None, task, "batch", len(batches), len(batches) - len(left)) as bar:
            for name, tensors in self.each(partial(_attack_batch, self.classifier, options), left):
                finished[name] = tensors
                checkpoint.put(name, tensors)
                bar.update()
        return AttackedImages.joined([AttackedImages.from_tensors(tensors) for tensors in finished.values()])

    def records(self) -> pd.DataFrame:
        """Decide on the stored images; write and return the records."""
        rows = records.records_of(self.item, "no_shield", self.classifier, self.data, self.unaware, self.ball)
        records.save(rows, self.folder / "records.csv")
        return rows


def _attack_batch(classifier: nn.Module, options: dict, batch: tuple[str, Images]) -> tuple[str, dict[str, Tensor]]:
    """One batch, here or in another process: its name, and its attacked images as tensors."""
    name, data = batch
    try:
        attacked = autoattack(classifier, data.pixels, data.labels, **options)
    except torch.OutOfMemoryError:
        given = f"baseline.batch_size is {len(data)}, and so many images do not fit into the memory of the device"
        raise UserError(f"{given}; lower it") from None
    return name, attacked.tensors()
