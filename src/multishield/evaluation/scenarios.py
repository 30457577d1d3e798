"""The three scenarios: the classifier alone; the shield, attacker unaware of it; the attacker who knows everything.

Of the last each attack, the worst case per image, and what the sanity rules need.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from multishield.attacks.apgd import apgd
from multishield.attacks.autoattack import autoattack
from multishield.attacks.joint import evasion_margin, joint
from multishield.attacks.loop.checkpoint import attack_resumably
from multishield.attacks.loop.loop import Watch
from multishield.attacks.loop.result import AttackedImages
from multishield.attacks.losses import margin
from multishield.attacks.paper import paper
from multishield.attacks.square import square
from multishield.attacks.threat_model import evaded, evades, fooled, transfer
from multishield.data.splits import Split
from multishield.defences import Defence, Undefended
from multishield.evaluation.verdicts import records_of
from multishield.models.classifier import load_classifier
from multishield.params import Adaptive, Baseline
from multishield.params.values import AA_STANDARD
from multishield.shield import MultiShield
from multishield.storage.checkpoints import in_parts
from multishield.storage.errors import UserError

# An attack of the portfolio: shield, images, labels and the loop's keywords to a result.
Attack = Callable[..., AttackedImages]
# Large enough to make any image grey: what resists this radius is not robust but out of the attack's sight.
LARGE = 0.5


def load_shield(name: str, tolerance: float) -> MultiShield:
    """The shield of the pipeline's classifier `name` and its alignment, frozen, on the best device."""
    from multishield.models.zero_shot import load_alignment  # open_clip is slow to import; scenario 1 does without

    return MultiShield(load_classifier(name), load_alignment(), tolerance).eval()


def run_baseline(
    name: str, classifier: nn.Module, data: Split, params: Baseline, eps: float, seed: int
) -> AttackedImages:
    """Scenario 1: AutoAttack on the classifier alone. Resumes after the last complete batch.

    Raises:
        UserError: a batch does not fit into the memory of the device. It is not made smaller by itself, because
            AutoAttack's random numbers, and so its results, depend on the batch.
    """
    attacks = AA_STANDARD if params.attacks == "standard" else tuple(params.attacks)

    def compute(part: slice) -> dict[str, Tensor]:
        c = data[part]
        try:
            return autoattack(classifier, c.pixels, c.labels, eps=eps, seed=seed, ids=c.ids, attacks=attacks).tensors()
        except torch.OutOfMemoryError:
            raise UserError(
                f"baseline.batch_size is {params.batch_size}, and as many images at once do not fit into the memory of "
                f"the device with {name}; lower it"
            ) from None

    inputs = (classifier, data.images, data.labels, attacks, eps, seed)
    parts = in_parts(f"baseline {name}", compute, len(data), params.batch_size, *inputs)
    return AttackedImages.joined([AttackedImages.of_tensors(part) for part in parts])


def portfolio(params: Adaptive) -> dict[str, Attack]:
    """The attacks of scenario 3 by name, with their parameters."""

    def clip_only(shield, x, y, **options):
        """CLIP alone is led astray, whatever the classifier does: mostly the shield rejects, which denies service."""
        options |= params.alignment.model_dump()
        return apgd(shield.alignment, x, y, loss=margin, tag="clip-only", success=fooled, **options)

    def black_box(shield, x, y, **options):
        loss = partial(evasion_margin, defence=shield)
        options |= params.square.model_dump()
        return square(shield.scores, x, y, success=evades(shield), loss=loss, **options)

    return {
        "paper": partial(paper, **params.paper.model_dump()),
        "joint": partial(joint, **params.joint.model_dump()),
        "clip-only": clip_only,
        "square": black_box,
    }


def run_adaptive(
    name: str,
    attack: str,
    shield: Defence | MultiShield,
    data: Split,
    params: Adaptive,
    eps: float,
    seed: int,
    starts: Sequence[AttackedImages] = (),
) -> AttackedImages:
    """One attack of the portfolio on all images. Resumes; an image's result depends on the image alone.

    Args:
        starts: for `joint`, what attacks on the classifier and on CLIP alone have made of the same images.
    """
    function = portfolio(params)[attack]

    def compute(part: Tensor, watch: Watch) -> AttackedImages:
        c, begun = data[part], {"starts": [start[part] for start in starts]} if attack == "joint" else {}
        return function(shield, c.pixels, c.labels, eps=eps, seed=seed, ids=c.ids, watch=watch, **begun)

    numbers = {k: v for k, v in vars(shield).items() if isinstance(v, (int, float, str))}  # tolerance, thresholds
    inputs = (attack, shield, numbers, data.images, data.labels, data.ids, params.model_dump(), eps, seed)
    inputs += tuple(t for start in starts for t in (start.images, start.success))
    return attack_resumably(f"{attack} attack on {name}", compute, len(data), *inputs)


def worst_case(shield: MultiShield, data: Split, candidates: dict[str, AttackedImages]) -> AttackedImages:
    """Per image the first that the shield accepts as a wrong class: the clean image, then each candidate in turn.

    The passes are the sum over all candidates.

    Args:
        candidates: attack name to its stored images; "transfer" may hold the images of scenario 2.
    """
    images, names = data.pixels.clone(), [""] * len(data)
    tried = {"clean": data.pixels, **{name: attacked.images for name, attacked in candidates.items()}}
    for name, pixels in tried.items():
        for i in transfer(shield, pixels, data.labels, success=evaded).nonzero()[:, 0].tolist():
            if not names[i]:
                images[i], names[i] = pixels[i], name
    passes = (sum(getattr(c, kind) for c in candidates.values()) for kind in ("forwards", "backwards"))
    return AttackedImages(images, names, *passes)


def against_survivors(
    name: str, shield: MultiShield, data: Split, worst: AttackedImages, params: Adaptive, eps: float, seed: int
) -> AttackedImages:
    """The black-box attack on the images that no other attack has broken; all others are left as they are.

    One that it breaks is a finding: gradients did not show the way (see `sanity`).
    """
    left = (~worst.success).nonzero()[:, 0]
    if not len(left):
        return worst
    found = run_adaptive(name, "square", shield, data[left], params, eps, seed)
    images, forwards = worst.images.index_copy(0, left, found.images), worst.forwards.index_add(0, left, found.forwards)
    names = list(worst.broken_by)
    for i, attack in zip(left.tolist(), found.broken_by, strict=True):
        names[i] = attack
    return AttackedImages(images, names, forwards, worst.backwards)


def sanity_rows(
    name: str,
    shield: MultiShield,
    data: Split,
    params: Adaptive,
    eps: float,
    seed: int,
    starts: Sequence[AttackedImages],
) -> pd.DataFrame:
    """Records of the runs that only the sanity rules need, on the first images: joint at other radii, with half its
    steps, and on the classifier alone at half the radius.

    Scenarios are "eps x 0.5", "eps x 2", "large eps", "half the steps" and "classifier, eps x 0.5".
    """
    few = data[: params.sanity.images]
    starts = [start[torch.arange(len(few))] for start in starts]
    # What an attack has not broken at eps may break at another radius: there, all tries are for all images.
    anywhere = [replace(start, broken_by=["elsewhere"] * len(few)) for start in starts]
    joint_by_half = params.joint.model_copy(update={"steps": max(1, params.joint.steps // 2)})
    half = params.model_copy(update={"joint": joint_by_half})
    runs = {
        "eps x 0.5": (shield, params, eps / 2, anywhere),
        "eps x 2": (shield, params, min(2 * eps, LARGE), anywhere),
        "large eps": (shield, params, LARGE, anywhere),
        "half the steps": (shield, half, eps, starts),
        "classifier, eps x 0.5": (Undefended(shield.classifier), params, eps / 2, anywhere[:1]),
    }
    rows = []
    for scenario, (model, options, radius, begun) in runs.items():
        attacked = run_adaptive(f"{name}, {scenario}", "joint", model, few, options, radius, seed, begun)
        rows.append(records_of(name, scenario, model, few, attacked, radius))
    return pd.concat(rows, ignore_index=True)
