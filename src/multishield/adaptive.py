"""Scenario 3: the attacker knows everything. Each attack on all images, then the worst case per image."""

import numpy as np
import torch
from torch import Tensor

from multishield.attacks.base import AttackResult
from multishield.attacks.joint import joint
from multishield.attacks.paper import paper
from multishield.dataset import Split
from multishield.evaluation import Attacked, judge
from multishield.params import Adaptive
from multishield.resume import in_chunks
from multishield.shield import MultiShield


def run_adaptive(
    name: str, attack: str, shield: MultiShield, data: Split, params: Adaptive, eps: float, seed: int
) -> Attacked:
    """Scenario 3, one attack on all images: "paper" or "joint". Resumes after the last complete batch."""
    function, options = (paper, params.paper) if attack == "paper" else (joint, params.joint)

    def compute(part: slice) -> dict[str, Tensor]:
        c = data[part]
        result: AttackResult = function(
            shield, c.pixels, c.labels, eps=eps, seed=seed, ids=c.ids, **options.model_dump()
        )
        return {
            "images": result.images,
            "success": result.success,
            "forwards": result.forwards,
            "backwards": result.backwards,
        }

    t = in_chunks(
        f"{attack} attack on {name}",
        compute,
        len(data),
        params.batch_size,
        attack,
        shield,
        shield.tolerance,
        data.images,
        data.labels,
        options.model_dump(),
        eps,
        seed,
    )
    untouched = (t["images"] == data.pixels).flatten(1).all(1)
    names = [
        ("clean" if u else attack) if s else "" for s, u in zip(t["success"].tolist(), untouched.tolist(), strict=True)
    ]
    return Attacked(t["images"], names, t["forwards"], t["backwards"])


def worst_case(shield: MultiShield, data: Split, candidates: dict[str, Attacked]) -> Attacked:
    """Per image the first that the shield accepts as a wrong class: the clean image, then each candidate in turn.

    Args:
        candidates: attack name to its stored images; "transfer" may hold the images of scenario 2.

    Returns:
        Their images and names, the clean image and "" where none broke it; the passes are the sum over all candidates.
    """
    rejected = len(shield.alignment.text)
    images, names = data.pixels.clone(), np.array([""] * len(data), dtype=object)
    tried = {"clean": data.pixels, **{name: attacked.images for name, attacked in candidates.items()}}
    for name, pixels in tried.items():
        verdict = judge(shield, pixels)["decision"]
        wins = (verdict != data.labels) & (verdict != rejected)
        new = wins & torch.from_numpy(names == "")
        images[new], names[new.numpy()] = pixels[new], name
    return Attacked(
        images,
        names.tolist(),
        sum(c.forwards for c in candidates.values()),
        sum(c.backwards for c in candidates.values()),
    )
