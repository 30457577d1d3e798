"""Stages that attack shields. Training and the baseline do without, so that a changed attack leaves them up to date."""

from functools import cached_property

from multishield.portfolio import Attacker
from multishield.shield import MultiShield
from paper.models.alignment import load_alignment
from paper.models.classifier import load_classifier
from paper.stages.base import Base


class Attacking(Base):
    """A stage that attacks the shield of a classifier; its item is the classifier's name."""

    def shield_of(self, name: str) -> MultiShield:
        """The shield of a classifier and the alignment, frozen."""
        return MultiShield(load_classifier(name), load_alignment(), self.params.multishield.tolerance)

    def attacker_of(self, name: str) -> Attacker:
        """The attacks on a defence of that classifier."""
        return Attacker(name, self.params.adaptive, self.ball, self.params.seed, self.resume, self.each)

    @cached_property
    def shield(self) -> MultiShield:
        """The shield of this stage's classifier."""
        return self.shield_of(self.item)
