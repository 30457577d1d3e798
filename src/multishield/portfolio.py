"""The attacks on a model that abstains, each resumable, the worst case of them, and the runs that judge them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from multishield.attacks.components import denial, one_margin
from multishield.attacks.joint import joint
from multishield.attacks.loop import Watch
from multishield.attacks.losses import evasion_margin
from multishield.attacks.paper import paper
from multishield.attacks.resumable import attack_resumably
from multishield.attacks.square import square
from multishield.attacks.threat_model import Ball, evaded, evades, transfer
from multishield.defences import Undefended
from multishield.forward import device_of, forward
from multishield.images import AttackedImages, Split
from multishield.records import wilson
from multishield.verdicts import decide, records_of
from paper.params import Adaptive

# Parts of the radius at which the second attacker wants rejection, see `curve`.
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
MODELS = {"classifier": "classifier", "CLIP": "alignment"}  # what can stand alone: its name, and a shield's attribute


def part_names(defence: nn.Module, count: int) -> list[str]:
    """What the attacks on a defence's M margins are called: by its own names for them, or by their numbers."""
    return [f"on {part}" for part in getattr(defence, "parts", [f"part {number + 1}" for number in range(count)])]


class Attacker:
    """The threat model, the portfolio's parameters and the seed: all that the attacks on one defence share.

    Each attack resumes, and an image's result depends on the image alone.

    Args:
        name: of the defence, in progress lines and records. ball: the radius and the norm.
    """

    def __init__(self, name: str, params: Adaptive, ball: Ball, seed: int):
        self.name, self.params, self.ball, self.seed = name, params, ball, seed

    def at(self, label: str, params: Adaptive, ball: Ball) -> "Attacker":
        """The same one with other parameters or in another ball."""
        return Attacker(f"{self.name}, {label}", params, ball, self.seed)

    def run(self, attack: partial, tag: str, defence: nn.Module, data: Split, starts=()) -> AttackedImages:
        """One attack on all images. Its settings are bound; it takes a defence, images, labels, and the loop's own."""
        ball = {"eps": self.ball.eps, "norm": self.ball.norm, "seed": self.seed}
        margins = margins_of(defence, data)  # for code and thresholds that no state holds
        inputs = (tag, attack.keywords, defence, margins, data.images, data.labels, data.ids, ball)
        inputs += tuple(t for start in starts for t in (start.images, start.success))
        return attack_resumably(
            f"{tag} attack on {self.name}",
            partial(_attack, attack=attack, ball=ball),
            defence,
            lambda part: (data[part], [start[part] for start in starts]),
            len(data),
            *inputs,
            bytes_each=data[:1].pixels.nbytes * (1 + len(starts)),
            costs=sum(start.forwards + start.backwards for start in starts) if starts else None,
        )

    def parts(
        self, defence: nn.Module, data: Split, known: Sequence[AttackedImages | None] = ()
    ) -> dict[str, AttackedImages]:
        """APGD on each margin alone, by the names of `part_names`; what is known already is taken as it is."""
        found = {}
        for number, name in enumerate(part_names(defence, margins_of(defence, data).shape[1])):
            given = known[number] if number < len(known) else None
            found[name] = given if given is not None else self.part(defence, data, number, name)
        return found

    def part(self, defence: nn.Module, data: Split, number: int, name: str) -> AttackedImages:
        """APGD on the margin of that number alone; name: of the attack."""
        attack = partial(one_margin, part=number, tag=name, **self.params.parts.model_dump())
        return self.run(attack, name, defence, data)

    def paper(self, defence: nn.Module, data: Split) -> AttackedImages:
        """The untargeted attack of the paper's reference, on the K+1 outputs of any defence."""
        return self.run(partial(paper, **self.params.paper.model_dump()), "paper", defence, data)

    def joint(self, defence: nn.Module, data: Split, starts: Sequence[AttackedImages], **more) -> AttackedImages:
        """The attack that is believed, from what attacks on the parts have made. more: see `joint`."""
        return self.run(partial(joint, **self.params.joint.model_dump(), **more), "joint", defence, data, starts)

    def denial(self, defence: nn.Module, data: Split) -> AttackedImages:
        """The attacker who wants rejection."""
        return self.run(partial(denial, **self.params.denial.model_dump()), "denial", defence, data)

    def square(self, defence: nn.Module, data: Split) -> AttackedImages:
        """The black box."""
        return self.run(partial(_black_box, **self.params.square.model_dump()), "square", defence, data)

    def against_survivors(self, defence: nn.Module, data: Split, worst: AttackedImages) -> AttackedImages:
        """The black box on the images that no other attack has broken; all others are left as they are.

        One that it breaks is a finding: gradients did not show the way (see `sanity`).
        """
        left = (~worst.success).nonzero()[:, 0]
        return updated(worst, left, self.square(defence, data[left])) if len(left) else worst

    def held(self, defence: nn.Module, data: Split, worst: AttackedImages, denied: AttackedImages) -> Tensor:
        """Per image and alpha whether nothing within eps is accepted as a wrong class, and nothing within alpha * eps
        is rejected or wrong, bool (N, len(ALPHAS)); see `curve`."""
        found, columns = denied, []
        for alpha in reversed(ALPHAS):
            if 0 < alpha < 1:  # what is not rejected at a larger radius is not at a smaller one
                left = found.success.nonzero()[:, 0]
                weaker = self.at(f"{alpha:g} eps", self.params, replace(self.ball, eps=alpha * self.ball.eps))
                held = replace(denied, broken_by=[""] * len(data))
                found = updated(held, left, weaker.denial(defence, data[left])) if len(left) else held
            right = decide(defence, data.pixels).decision == data.labels if alpha == 0 else ~found.success
            columns.append(~worst.success & right)
        return torch.stack(columns[::-1], 1)

    def sanity_rows(self, defence: nn.Module, data: Split, starts: Sequence[AttackedImages]) -> pd.DataFrame:
        """Records of the runs that only the sanity rules need, on the first images: joint at other radii, with half its
        steps, and on each of `MODELS` alone at half the radius, where the defence has it.

        Scenarios are "eps x 0.5", "eps x 2", "large eps", "half the steps", "classifier, eps x 0.5", "CLIP, eps x 0.5".
        """
        few = data[: self.params.sanity.images]
        starts = [start[torch.arange(len(few))] for start in starts]
        # What an attack has not broken at eps it may break at a larger radius: there, all tries are for all images.
        anywhere = [replace(start, broken_by=["elsewhere"] * len(few)) for start in starts]
        fewer = self.params.joint.model_copy(update={"steps": max(1, self.params.joint.steps // 2)})
        half = self.params.model_copy(update={"joint": fewer})
        # What all parts have lost at eps they may hold at half of it: no long tries there, which would be for nothing.
        ball, large, short = self.ball, grey(self.ball, data), {"long": 1, "rounds": 0}
        runs = {
            "eps x 0.5": (defence, self.params, ball.eps / 2, starts),
            "eps x 2": (defence, self.params, min(2 * ball.eps, large), anywhere),
            "large eps": (defence, self.params, large, anywhere),
            "half the steps": (defence, half, ball.eps, starts),
        }
        for i, (name, attribute) in enumerate(MODELS.items()):
            if hasattr(defence, attribute):
                alone = Undefended(getattr(defence, attribute))
                runs[f"{name}, eps x 0.5"] = (alone, self.params, ball.eps / 2, starts[i : i + 1])
        rows = []
        for scenario, (model, params, eps, begun) in runs.items():
            other = replace(ball, eps=eps)
            more = short if eps < ball.eps else {}
            attacked = self.at(scenario, params, other).joint(model, few, begun, **more)
            rows.append(records_of(self.name, scenario, model, few, attacked, other))
        return pd.concat(rows, ignore_index=True)


def curve(held: Tensor) -> pd.DataFrame:
    """The robustness curve of Chen et al. 2023 (arXiv 2305.01139): where rejecting a hardly touched image is wrong.

    Args:
        held: see `Attacker.held`.

    Returns:
        Per alpha the share of images that are held: alpha, value, low, high (95 % Wilson), n.
    """
    n = len(held)
    rows = [(alpha, hits / n, *wilson(hits, n), n) for alpha, hits in zip(ALPHAS, held.sum(0).tolist(), strict=True)]
    return pd.DataFrame(rows, columns=["alpha", "value", "low", "high", "n"])


def _attack(defence: nn.Module, chosen: tuple[Split, list[AttackedImages]], watch: Watch, attack: partial, ball: dict):
    """One attack on some images, as `spread` has it done, here or on another machine."""
    data, starts = chosen
    begun = {"starts": starts} if starts else {}
    attack(defence, data.pixels, data.labels, ids=data.ids, watch=watch, **ball, **begun)


def _black_box(defence: nn.Module, x: Tensor, y: Tensor, **options) -> AttackedImages:
    loss = partial(evasion_margin, defence=defence)
    return square(defence.scores, x, y, success=evades(defence), loss=loss, **options)


def grey(ball: Ball, data: Split) -> float:
    """The radius at which any image can be made grey: what resists it is not robust but out of the attack's sight."""
    return 0.5 if ball.norm == "Linf" else 0.5 * math.sqrt(data[:1].images.numel())


@torch.no_grad()
def margins_of(defence: nn.Module, data: Split) -> Tensor:
    """The margins of the first images, (B,M,K) on the CPU."""
    return defence.margins(forward(defence.scores, data[:8].pixels.to(device_of(defence)))).cpu()


def untouched(data: Split) -> AttackedImages:
    """Images that no attack has seen."""
    none = torch.zeros(len(data), dtype=torch.long)
    return AttackedImages(data.pixels.clone(), [""] * len(data), none, none)


def updated(before: AttackedImages, at: Tensor, found: AttackedImages) -> AttackedImages:
    """The same, but for the images of some indices; passes add up."""
    images, names = before.images.index_copy(0, at, found.images), list(before.broken_by)
    for i, name in zip(at.tolist(), found.broken_by, strict=True):
        names[i] = name
    passes = (getattr(before, kind).index_add(0, at, getattr(found, kind)) for kind in ("forwards", "backwards"))
    return AttackedImages(images, names, *passes)


def worst_case(defence: nn.Module, data: Split, candidates: dict[str, AttackedImages]) -> AttackedImages:
    """Per image the first that the defence accepts as a wrong class: the clean image, then each candidate in turn.

    The passes are the sum over all candidates.

    Args:
        candidates: attack name to its stored images, those of attacks on other models included.
    """
    images, names = data.pixels.clone(), [""] * len(data)
    tried = {"clean": data.pixels, **{name: attacked.images for name, attacked in candidates.items()}}
    for name, pixels in tried.items():
        for i in transfer(defence, pixels, data.labels, success=evaded).nonzero()[:, 0].tolist():
            if not names[i]:
                images[i], names[i] = pixels[i], name
    none = torch.zeros(len(data), dtype=torch.long)
    passes = (sum((getattr(c, kind) for c in candidates.values()), none) for kind in ("forwards", "backwards"))
    return AttackedImages(images, names, *passes)
