"""The three scenarios: the classifier alone; the shield, attacker unaware of it; the attacker who knows everything.

Of the last each attack, the worst case per image, and what the sanity rules need.
"""

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn

from multishield.attacks.apgd import apgd
from multishield.attacks.autoattack import STANDARD, autoattack
from multishield.attacks.joint import evasion_margin, joint
from multishield.attacks.loop.checkpoint import attack_resumably
from multishield.attacks.loop.result import AttackResult
from multishield.attacks.losses import margin
from multishield.attacks.paper import paper
from multishield.attacks.square import square
from multishield.attacks.threat_model import evaded, evaded_by, fooled
from multishield.attacks.transfer import transfer
from multishield.data.splits import Split
from multishield.evaluation.verdicts import Attacked, records_of
from multishield.models.classifier import load_classifier
from multishield.models.zero_shot import load_alignment
from multishield.params import Adaptive, Baseline
from multishield.shield import MultiShield
from multishield.storage.checkpoints import in_chunks
from multishield.storage.errors import UserError

# An attack of the portfolio: shield, images, labels and the engine's keywords to a result.
Attack = Callable[..., AttackResult]
# Large enough to make any image grey: what resists this radius is not robust but out of the attack's sight.
LARGE = 0.5


def load_shield(name: str, tolerance: float) -> MultiShield:
    """The shield of the pipeline's classifier `name` and its alignment, frozen, on the best device."""
    return MultiShield(load_classifier(name), load_alignment(), tolerance).eval()


def run_baseline(name: str, classifier: nn.Module, data: Split, params: Baseline, eps: float, seed: int) -> Attacked:
    """Scenario 1: AutoAttack on the classifier alone. Resumes after the last complete batch.

    Raises:
        UserError: a batch does not fit into the memory of the device. It is not made smaller by itself, because
            AutoAttack's random numbers, and so its results, depend on the batch.
    """
    attacks = STANDARD if params.attacks == "standard" else tuple(params.attacks)

    def compute(part: slice) -> dict[str, Tensor]:
        chunk = data[part]
        try:
            result, names = autoattack(
                classifier, chunk.pixels, chunk.labels, eps=eps, seed=seed, ids=chunk.ids, attacks=attacks
            )
        except torch.OutOfMemoryError:
            raise UserError(
                f"baseline.batch_size is {params.batch_size}, and as many images at once do not fit into the memory of "
                f"the device with {name}; lower it"
            ) from None
        codes = torch.tensor([-1 if n == "clean" else attacks.index(n) if n else -2 for n in names])
        return {"images": result.images, "code": codes, "forwards": result.forwards, "backwards": result.backwards}

    t = in_chunks(
        f"baseline {name}",
        compute,
        len(data),
        params.batch_size,
        classifier,
        data.images,
        data.labels,
        attacks,
        eps,
        seed,
    )
    names = {-1: "clean", -2: "", **dict(enumerate(attacks))}
    return Attacked(t["images"], [names[c] for c in t["code"].tolist()], t["forwards"], t["backwards"])


def portfolio(params: Adaptive) -> dict[str, Attack]:
    """The attacks of scenario 3 by name, with their parameters."""

    def alignment(shield, x, y, **options):
        """CLIP alone is led astray, whatever the classifier does: mostly the shield rejects, which denies service."""
        options |= params.alignment.model_dump()
        return apgd(shield.alignment, x, y, loss=margin, tag="alignment", success=fooled, **options)

    def black_box(shield, x, y, **options):
        rule, loss = evaded_by(shield.tolerance), evasion_margin(shield.tolerance)
        where = next(shield.parameters()).device
        return square(
            shield.scores, x, y, success=rule, loss=loss, where=where, **params.square.model_dump(), **options
        )

    return {
        "paper": lambda shield, x, y, **options: paper(shield, x, y, **params.paper.model_dump(), **options),
        "joint": lambda shield, x, y, **options: joint(shield, x, y, **params.joint.model_dump(), **options),
        "alignment": alignment,
        "square": black_box,
    }


def run_adaptive(
    name: str, attack: str, shield: MultiShield, data: Split, params: Adaptive, eps: float, seed: int
) -> Attacked:
    """One attack of the portfolio on all images. Resumes; an image's result depends on the image alone."""
    function = portfolio(params)[attack]

    def compute(part: Tensor, watch: Callable) -> AttackResult:
        c = data[part]
        return function(shield, c.pixels, c.labels, eps=eps, seed=seed, ids=c.ids, watch=watch)

    inputs = (attack, shield, shield.tolerance, data.images, data.labels, data.ids, params.model_dump(), eps, seed)
    r = attack_resumably(f"{attack} attack on {name}", compute, len(data), *inputs)
    untouched = (r.images == data.pixels).flatten(1).all(1)
    names = [
        ("clean" if u else attack) if s else "" for s, u in zip(r.success.tolist(), untouched.tolist(), strict=True)
    ]
    return Attacked(r.images, names, r.forwards, r.backwards)


def worst_case(shield: MultiShield, data: Split, candidates: dict[str, Attacked]) -> Attacked:
    """Per image the first that the shield accepts as a wrong class: the clean image, then each candidate in turn.

    Args:
        candidates: attack name to its stored images; "transfer" may hold the images of scenario 2.

    Returns:
        Their images and names, the clean image and "" where none broke it; the passes are the sum over all candidates.
    """
    images, names = data.pixels.clone(), [""] * len(data)
    tried = {"clean": data.pixels, **{name: attacked.images for name, attacked in candidates.items()}}
    for name, pixels in tried.items():
        wins = transfer(shield, data.pixels, data.labels, candidates=pixels, success=evaded).success
        for i in wins.nonzero()[:, 0].tolist():
            if not names[i]:
                images[i], names[i] = pixels[i], name
    return Attacked(
        images,
        names,
        sum(c.forwards for c in candidates.values()),
        sum(c.backwards for c in candidates.values()),
    )


def against_survivors(
    name: str, shield: MultiShield, data: Split, worst: Attacked, params: Adaptive, eps: float, seed: int
) -> Attacked:
    """The black-box attack on the images that no other attack has broken; all others are left as they are.

    One that it breaks is a finding: gradients did not show the way (see `sanity`).
    """
    left = torch.tensor([not attack for attack in worst.attack])
    images, names = worst.images.clone(), list(worst.attack)
    forwards, backwards = worst.forwards.clone(), worst.backwards.clone()
    if left.any():
        found = run_adaptive(name, "square", shield, data[left], params, eps, seed)
        images[left], forwards[left], backwards[left] = found.images, forwards[left] + found.forwards, backwards[left]
        for i, attack in zip(left.nonzero()[:, 0].tolist(), found.attack, strict=True):
            names[i] = attack
    return Attacked(images, names, forwards, backwards)


def sanity_rows(name: str, shield: MultiShield, data: Split, params: Adaptive, eps: float, seed: int) -> pd.DataFrame:
    """Records of the runs that only the sanity rules need: joint at other radii, and with half its steps.

    Scenarios are "eps x 0.5", "eps x 2", "large eps" and "half the steps", on the first images.
    """
    few = data[: params.sanity.images]
    half = params.model_copy(
        update={"joint": params.joint.model_copy(update={"steps": max(1, params.joint.steps // 2)})}
    )
    runs = {
        "eps x 0.5": (params, eps / 2),
        "eps x 2": (params, min(2 * eps, LARGE)),
        "large eps": (params, LARGE),
        "half the steps": (half, eps),
    }
    rows = []
    for scenario, (options, radius) in runs.items():
        attacked = run_adaptive(f"{name}, {scenario}", "joint", shield, few, options, radius, seed)
        rows.append(records_of(name, scenario, shield, few, attacked, radius))
    return pd.concat(rows, ignore_index=True)
