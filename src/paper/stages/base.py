"""The stages' common ground: parameters, images, models, threat model, and the folder for results."""

from functools import cached_property

import torch

from multishield.attacks.threat_model import Ball
from multishield.images import Images, StoredImages
from multishield.portfolio import Attacker
from multishield.shield import MultiShield
from paper import paths, workers
from paper.data.splits import load_classes, load_split
from paper.models.classifier import load_classifier
from paper.naming import run_name
from paper.params import Params


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
        return load_classes()

    @cached_property
    def data(self) -> Images:
        """The evaluation images."""
        return load_split("evaluation")

    @cached_property
    def validation(self) -> Images:
        """The validation images."""
        return load_split("validation")


class Attacking(Base):
    """A stage that attacks a classifier; its item is the classifier's name."""

    def shield_of(self, name: str) -> MultiShield:
        """The shield of a classifier and the alignment, frozen."""
        from paper.models.alignment import load_alignment  # open_clip is slow to import; scenario 1 does without

        return MultiShield(load_classifier(name), load_alignment(), self.params.multishield.tolerance)

    def unaware_of(self, name: str) -> StoredImages:
        """AutoAttack's images of a classifier alone (scenario 1)."""
        return StoredImages(paths.artifacts("baseline", name, "attacked"))

    def attacker_of(self, name: str) -> Attacker:
        """The attacks on a defence of that classifier."""
        return Attacker(name, self.params.adaptive, self.ball, self.params.seed, self.resume, self.each)

    @cached_property
    def shield(self) -> MultiShield:
        """The shield of this stage's classifier."""
        return self.shield_of(self.item)

    @cached_property
    def unaware(self) -> StoredImages:
        """AutoAttack's images of this stage's classifier."""
        return self.unaware_of(self.item)
