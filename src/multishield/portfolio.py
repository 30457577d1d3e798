"""The attacks on a model that abstains, in their order, the worst case of them, and the runs that judge them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from multishield.attacks.components import denial, one_margin
from multishield.attacks.joint import joint
from multishield.attacks.loop import Watch
from multishield.attacks.losses import evasion_margin
from multishield.attacks.paper import paper_attack
from multishield.attacks.square import square
from multishield.attacks.threat_model import Ball, evaded, evades, per_image
from multishield.budget import Budget
from multishield.defences import Drawn, Undefended
from multishield.forward import outputs, scores_of
from multishield.images import AttackedImages, Images
from multishield.records import decide, records_of, wilson
from multishield.resume import Checkpoint, Each, attack_resumably

MANY = 5000  # queries of Square in AutoAttack's version `standard`
# Shares of the radius at which the second attacker wants rejection, see `robustness_curve`.
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def component_names(defence: nn.Module, count: int) -> list[str]:
    """Names of the attacks on a defence's M margins: from its own names for them, or from their numbers."""
    return [f"on {name}" for name in getattr(defence, "components", [f"component {n + 1}" for n in range(count)])]


@dataclass(frozen=True)
class Attacker:
    """The attacks on one defence, and all that they share: its name, in progress lines and records, and their settings.

    `resume` is the folder for finished images; None keeps none. `each` says how pieces are computed, see `resume.Each`.
    `batch_size` is that of `loop.Attack`. Without `verbose` there are no progress lines.
    """

    name: str
    budget: Budget
    ball: Ball
    seed: int
    resume: Path | None = None
    each: Each = map
    batch_size: int | None = None
    verbose: bool = True

    def run(self, attack: Callable, task: str, defence: nn.Module, data: Images, starts=(), **settings):
        """One attack on all images, as `AttackedImages`; the task is its name.

        It is a function (defence, images, labels, *, ids, ball, seed, watch, settings), and gets `starts` where given.
        """
        inputs = [task, settings, defence, margins_of(defence, data), *vars(data).values(), asdict(self.ball)]
        inputs += [self.seed, *(t for start in starts for t in (start.images, start.success))]
        task, settings = f"{task} attack on {self.name}", settings | {"ball": self.ball, "seed": self.seed}
        # A random model has no border: the image nearest to evasion is accepted most often.
        settings |= {"nearest": True} if isinstance(defence, Drawn) else {}
        work = partial(_attack, attack, defence, settings | {"batch_size": self.batch_size})
        checkpoint, task = Checkpoint(self.resume, task, *inputs), task if self.verbose else ""
        return attack_resumably(task, work, data, list(starts), checkpoint, self.each)

    def components(self, defence: nn.Module, data: Images, known: Sequence = ()) -> dict[str, AttackedImages]:
        """APGD on each margin alone, by the names of `component_names`; known attacked images are taken as they are."""
        names = component_names(defence, margins_of(defence, data).shape[1])
        given = dict(zip(names, known, strict=False))
        return {name: given.get(name) or self.component(defence, data, n, name) for n, name in enumerate(names)}

    def component(self, defence: nn.Module, data: Images, number: int, name: str) -> AttackedImages:
        """APGD on the margin of that number alone; `name` is the attack's."""
        return self.run(one_margin, name, defence, data, component=number, tag=name, **asdict(self.budget.components))

    def paper(self, defence: nn.Module, data: Images) -> AttackedImages:
        """The untargeted attack of the paper's reference, on the K+1 outputs of any defence."""
        return self.run(paper_attack, "paper", defence, data, **asdict(self.budget.paper))

    def joint(self, defence: nn.Module, data: Images, starts: Sequence[AttackedImages], **more) -> AttackedImages:
        """The attack that is believed, from the images of attacks on the components. more: see `joint`."""
        return self.run(joint, "joint", defence, data, starts, **asdict(self.budget.joint), **more)

    def denial(self, defence: nn.Module, data: Images) -> AttackedImages:
        """The attacker who wants rejection."""
        return self.run(denial, "denial", defence, data, **asdict(self.budget.denial))

    def black_box(self, defence: nn.Module, data: Images, queries: int | None = None) -> AttackedImages:
        """Square, which sees the scores and no gradient."""
        return self.run(_black_box, "square", defence, data, queries=queries or self.budget.square.queries)

    def square_on_survivors(self, defence: nn.Module, data: Images, worst: AttackedImages) -> AttackedImages:
        """The black box on the images that no other attack has broken; all others are left as they are."""
        for queries in sorted({self.budget.square.queries, max(MANY, self.budget.square.queries)}):
            left = (~worst.success).nonzero()[:, 0]
            if not len(left):
                break
            attacked = self.black_box(defence, data[left], queries)
            worst = worst.updated(left, attacked)
            if not attacked.success.any():  # where it breaks what white boxes left, it goes on
                break
        return worst

    def held_at_each_alpha(
        self, defence: nn.Module, data: Images, worst: AttackedImages, denied: AttackedImages
    ) -> Tensor:
        """Per image and alpha whether nothing within eps is accepted as a wrong class, and nothing within alpha * eps
        is rejected or wrong, bool (N, len(ALPHAS)); see `robustness_curve`."""
        attacked, columns = denied, []
        clean = decide(defence, data.pixels, self.batch_size).decision == data.labels
        for alpha in reversed(ALPHAS):
            if 0 < alpha < 1:  # an image that is not rejected at a larger radius is not rejected at a smaller one
                left = (attacked.success & ~worst.success).nonzero()[:, 0]
                ball = replace(self.ball, eps=alpha * self.ball.eps)
                weaker = replace(self, name=f"{self.name}, {alpha:g} eps", ball=ball)
                attacked = AttackedImages.untouched(data)
                if len(left):
                    attacked = attacked.updated(left, weaker.denial(defence, data[left]))
            columns.append(~worst.success & (~attacked.success if alpha else clean))
        return torch.stack(columns[::-1], 1)

    def sanity_rows(self, defence: nn.Module, data: Images, starts: Sequence[AttackedImages]) -> pd.DataFrame:
        """Records of joint on the first images, for the sanity rules: at other radii, with half its steps, and at half
        the radius on each model that can stand alone (`Defence.standalone`)."""
        few, eps = data[: self.budget.sanity.images], self.ball.eps
        # The radius at which any image can be made grey: an image that resists there is out of the attack's sight.
        large = 0.5 * (self.ball.bounds[1] - self.ball.bounds[0])
        large *= 1 if self.ball.norm == "Linf" else math.sqrt(few.images[0].numel())
        starts = [start[: len(few)] for start in starts]
        # An image that an attack has not broken at eps may break at a larger radius: there, all images get all tries.
        anywhere = [replace(start, broken_by=["elsewhere"] * len(few)) for start in starts]
        rows, joint = [], self.budget.joint

        def run(scenario: str, model: nn.Module, eps: float, starts, joint=joint, **more) -> None:
            ball, budget = replace(self.ball, eps=eps), replace(self.budget, joint=joint)
            other = replace(self, name=f"{self.name}, {scenario}", ball=ball, budget=budget)
            attacked = other.joint(model, few, starts, **more)
            rows.append(records_of(self.name, scenario, model, few, attacked, ball, self.batch_size))

        # The components may hold at half of eps what they lost at eps: long tries there would be for nothing. At larger
        # radii an attack without them makes the rules stricter.
        run("eps x 0.5", defence, eps / 2, starts, long=1, rounds=0)
        run("eps x 2", defence, min(2 * eps, large), anywhere, long=1)
        run("large eps", defence, large, anywhere, long=1)
        run("half the steps", defence, eps, starts, replace(joint, steps=max(1, joint.steps // 2)))
        for number, (name, model) in enumerate(getattr(defence, "standalone", dict)().items()):
            run(f"{name}, eps x 0.5", Undefended(model), eps / 2, starts[number : number + 1], long=1, rounds=0)
        return pd.concat(rows, ignore_index=True)


def robustness_curve(held: Tensor) -> pd.DataFrame:
    """The robustness curve of Chen et al. 2023 (arXiv 2305.01139): rejecting a hardly touched image is wrong, too.

    Per alpha the share of images that `Attacker.held_at_each_alpha` holds: alpha, value, low, high (95 % Wilson), n.
    """
    n = len(held)
    rows = [(alpha, hits / n, *wilson(hits, n), n) for alpha, hits in zip(ALPHAS, held.sum(0).tolist(), strict=True)]
    return pd.DataFrame(rows, columns=["alpha", "value", "low", "high", "n"])


def _attack(attack: Callable, defence: nn.Module, settings: dict, data: Images, starts: list, watch: Watch | None):
    """One attack on some images, here or on another machine."""
    begun = {"starts": starts} if starts else {}
    return attack(defence, data.pixels, data.labels, ids=data.ids, watch=watch, **settings, **begun)


def _black_box(defence: nn.Module, x: Tensor, y: Tensor, **options) -> AttackedImages:
    loss = partial(evasion_margin, defence=defence)
    return square(defence.scores, x, y, success=evades(defence), loss=loss, **options)


def margins_of(defence: nn.Module, data: Images) -> Tensor:
    """The margins of the first images, (B,M,K) on the CPU: they name code and thresholds that no state dict holds."""
    return defence.margins(scores_of(defence, data[:8].pixels))


def worst_case(defence: nn.Module, data: Images, candidates: dict, batch_size: int | None = None) -> AttackedImages:
    """Per image the first that the defence accepts as a wrong class: the clean image, then each candidate in turn.

    `candidates` are `AttackedImages` by the name of the attack, on other models too. Their passes add up. Of a random
    model it is the image that most draws accept as a wrong class.
    """
    worst, most = AttackedImages.untouched(data), torch.zeros(len(data), dtype=torch.double)
    for name, attacked in {"clean": worst, **candidates}.items():
        out = outputs(defence, attacked.images, batch_size)
        shares = out[:, :-1].scatter(1, data.labels[:, None], 0).sum(1)
        wrong = shares if isinstance(defence, Drawn) else evaded(out, data.labels).double()
        left, most = wrong > most, most.maximum(wrong)
        names = [name if new else old for new, old in zip(left.tolist(), worst.broken_by, strict=True)]
        images = torch.where(per_image(left, worst.images), attacked.images, worst.images)
        worst = AttackedImages(images, names, worst.forwards + attacked.forwards, worst.backwards + attacked.backwards)
    return worst
