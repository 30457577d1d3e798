"""The stages' common ground: parameters, images, threat model, and the folder for results."""

from functools import cached_property

import torch

from multishield.attacks.threat_model import Ball
from multishield.images import Images, StoredImages
from paper import paths, workers
from paper.naming import run_name
from paper.params import Params
from paper.params.values import stored


class Base:
    """A stage of the pipeline: its parameters, its name, its item (a classifier or a study), the threat model `ball`.

    `folder` is for results, `resume` for unfinished work: the runner removes it when the stage has ended well. `each`
    says how pieces of work are computed, in this process or by workers.
    """

    def __init__(self, name: str, item: str | None = None):
        self.params, self.name, self.item = Params.load(), name, item
        self.folder = paths.artifacts(name, *([item] if item else []))
        self.resume, self.each = paths.state("resume", run_name(name, item)), workers.each()
        self.ball = Ball(self.params.threat_model.eps, self.params.threat_model.norm)
        # A GPU convolves in full precision, and always in the same way.
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True

    @cached_property
    def classes(self) -> list[str]:
        """The class names, in the order of the labels."""
        return stored(paths.artifacts("dataset", "classes.json"), list[str])

    # The images for training, validation, calibration and evaluation.
    train, validation, calibration, data = (
        cached_property(lambda self, file=f"{split}.safetensors": Images.load(paths.artifacts("dataset", file)))
        for split in ("train", "validation", "calibration", "evaluation")
    )

    def unaware_of(self, name: str) -> StoredImages:
        """AutoAttack's images of a classifier alone (scenario 1)."""
        return StoredImages(paths.artifacts("baseline", name, "attacked"))

    @cached_property
    def unaware(self) -> StoredImages:
        """AutoAttack's images of this stage's classifier."""
        return self.unaware_of(self.item)
