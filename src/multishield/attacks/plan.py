"""The tries of each image, and their order."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# In place of a target where an image has fewer tries than others. Its tries stand first.
NO_TRY = -2
# In place of the number of a start: that many steps up a random direction of the scores, see `Attack.diverse`.
DIVERSE, DIVERSE_STEPS = -2, 10


class Plan(NamedTuple):
    """The tries of B images. All are (B,V) int64; None takes the default.

    Attributes:
        target: the class that a try aims at; NO_TRY where an image has fewer tries.
        start: the number of an image in `starts`; -1, the default, for the rule's own; DIVERSE for one far from it.
        steps: the steps of a try; by default the rule's.
        group: tries of one number run side by side until one breaks the image; by default one follows the other.
    """

    target: Tensor
    start: Tensor | None = None
    steps: Tensor | None = None
    group: Tensor | None = None

    @classmethod
    def joined(cls, plans: Sequence["Plan"], steps: int) -> "Plan":
        """The plans of several batches as one, on the CPU, with defaults where they left columns open."""
        columns = (None if c[0] is None else torch.cat([t.cpu() for t in c]) for c in zip(*plans, strict=True))
        target, *others = columns
        usual = torch.tensor(-1), torch.tensor(steps), torch.arange(target.shape[1])
        return cls(target, *(d.expand_as(target) if t is None else t for t, d in zip(others, usual, strict=True)))

    def end(self, image: int, variant: int) -> int:
        """The first try of an image after those that run side by side with this one."""
        groups, last = self.group[image].tolist(), int((self.target[image] != NO_TRY).sum())
        return next((v for v in range(variant, last) if groups[v] != groups[variant]), last)
