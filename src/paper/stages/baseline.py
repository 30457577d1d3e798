"""Scenario 1, the classifier alone under AutoAttack, and the shield of scenarios 2 and 3 (see `evaluate` for those)."""

import torch
from torch import Tensor, nn

from multishield.attacks.threat_model import Ball
from multishield.errors import UserError
from multishield.images import AttackedImages, Split
from multishield.shield import MultiShield
from paper.models.classifier import load_classifier
from paper.params import Baseline
from paper.params.values import AA_STANDARD
from paper.stages.autoattack import autoattack
from paper.workers.parts import in_parts


def load_shield(name: str, tolerance: float) -> MultiShield:
    """The shield of the pipeline's classifier `name` and its alignment, frozen, on the best device."""
    from paper.models.zero_shot import load_alignment  # open_clip is slow to import; scenario 1 does without

    return MultiShield(load_classifier(name), load_alignment(), tolerance).eval()


def run_baseline(
    name: str, classifier: nn.Module, data: Split, params: Baseline, ball: Ball, seed: int
) -> AttackedImages:
    """Scenario 1: AutoAttack on the classifier alone. Resumes after the last complete batch.

    Raises:
        UserError: a batch does not fit into the memory of the device. It is not made smaller by itself, because
            AutoAttack's random numbers, and so its results, depend on the batch.
    """
    attacks = AA_STANDARD if params.attacks == "standard" else tuple(params.attacks)
    options = {"eps": ball.eps, "norm": ball.norm, "seed": seed}

    def compute(classifier: nn.Module, batch: Split) -> dict[str, Tensor]:
        try:
            return autoattack(
                classifier, batch.pixels, batch.labels, ids=batch.ids, attacks=attacks, **options
            ).tensors()
        except torch.OutOfMemoryError:
            raise UserError(
                f"baseline.batch_size is {params.batch_size}, and as many images at once do not fit into the memory of "
                f"the device with {name}; lower it"
            ) from None

    inputs = (classifier, data.images, data.labels, attacks, options)
    size = len(data), params.batch_size
    parts = in_parts(f"baseline {name}", compute, classifier, data.__getitem__, *size, *inputs)
    return AttackedImages.joined([AttackedImages.of_tensors(part) for part in parts])
