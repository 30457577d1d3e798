"""AutoAttack (Croce & Hein 2020) from its authors' package `pyautoattack`, for the classifier alone.

Its attacks run all their steps, and scenario 2 shows their images to the shield. So the package is not changed: its
passes are counted, and it is given a seed.
"""

import torch
from torch import Tensor, nn

from multishield.attacks.threat_model import Ball, fooled, per_image
from multishield.forward import device_of
from multishield.images import AttackedImages
from paper.params.values import AA_STANDARD, check_attacks


class PassCounter(nn.Module):
    """A model that counts how many images pass through it, forwards and backwards."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        out = self.model(x)
        if out.requires_grad:
            out.register_hook(self._count)
        return out

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def autoattack(
    classifier: nn.Module, images: Tensor, labels: Tensor, *, ball: Ball, seed: int, attacks: tuple = AA_STANDARD
) -> AttackedImages:
    """AutoAttack, one attack after the other on the images that are left, as `run_standard_evaluation` does.

    The classifier takes pixels (B,3,H,W) in [0,1] to logits (B,K); labels are (B,). `attacks` are names of AutoAttack,
    by default those of its version `standard`. A result depends on the batch, and passes are the mean of an attack's
    images. Raises UserError if an attack needs more classes.
    """
    from pyautoattack import AutoAttack  # slow to import: only the baseline needs it

    device = device_of(classifier)
    x, y = images.to(device), labels.to(device)
    with torch.no_grad():
        logits = classifier(x)
    check_attacks(attacks, classes := logits.shape[1])
    names, passes = ["clean" if wrong else "" for wrong in fooled(logits, y).tolist()], torch.zeros_like(labels)
    result = AttackedImages(images.clone(), names, passes + 1, passes)
    for name in attacks:
        left = (~result.success).nonzero()[:, 0]
        if not len(left):
            break
        counter = PassCounter(classifier)
        options = {"attacks": [name], "version": "custom", "seed": seed, "device": str(device)}
        adversary = AutoAttack(counter, norm=ball.norm, eps=ball.eps, **options)
        # The settings of version "standard", with fewer targets where there are fewer than ten classes.
        adversary.apgd.n_restarts = adversary.fab.n_restarts = 1
        adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = min(9, classes - 1)
        attacked, _ = adversary.run_standard_evaluation(x[left], y[left], batch_size=len(left))
        with torch.no_grad():
            broken = fooled(classifier(attacked.to(device)), y[left]).cpu()
        kept = torch.where(per_image(broken, images), attacked.cpu(), images[left])
        passes = (torch.full_like(left, count // len(left)) for count in (counter.forwards, counter.backwards))
        result = result.updated(left, AttackedImages(kept, [name * new for new in broken.tolist()], *passes))
    return result
