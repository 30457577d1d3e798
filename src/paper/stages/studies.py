"""Stage 8, studies: one thing is varied, all else stays as it is: CLIP's prompts, the tolerance, the attacker's radius,
or the Gaussian noise of smoothed models, which are certified.

The first three are attacked by APGD on each component, and by the joint attack from there without its long tries, on
as many images of each class. The baseline's images are known results, as are those of a smaller radius or tolerance.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor

from multishield import records
from multishield.attacks.pgd import fgsm
from multishield.attacks.threat_model import Ball
from multishield.budget import Budget, Components
from multishield.certification import certified_curve, certify
from multishield.defences import Undefended
from multishield.images import AttackedImages, Images
from multishield.portfolio import Attacker, component_names, worst_case
from multishield.shield import MultiShield
from multishield.zero_shot import ZeroShotClassifier, embed_prompts
from paper.data.source import draw
from paper.models.alignment import load_pipeline_clip
from paper.params import Params
from paper.params.sections import PromptSet
from paper.stages.attacking import Attacking

# Whose robust accuracy it is, and under which attack.
WHO = ("shield", "classifier", "shield, FGSM on the classifier", "shield, FGSM on itself")
COMPONENTS = component_names(MultiShield, 2)
# Of smoothed models: noisy copies of each image, L2 radii in units of sigma, and the attack on 5 % of the copies.
DRAWS, RADII, BUDGET = 200, (0.0, 0.5, 1.5), Budget(components=Components(targets=1, steps=5))


class Stage(Attacking):
    """See `Attacking`; the item is the study."""

    @cached_property
    def chosen(self) -> Tensor:
        """Which of the evaluation images are studied, as many of each class."""
        return draw(self.data.labels, self.params.studies.images, "stratified", self.params.seed)

    @cached_property
    def some(self) -> Images:
        """The images of the studies."""
        return self.data[self.chosen]

    def run(self) -> pd.DataFrame:
        """The study with every classifier; write and return its records.

        Beside the columns of `records.COLUMNS` there are "study", "value", "of" (of `WHO`), and "similarity".
        Those of "sigma" have the columns of `certify` instead.
        """
        vary = getattr(self, f"over_{self.item}")
        rows = pd.concat([row for name in self.params.classifiers for row in vary(name)], ignore_index=True)
        records.save(rows.assign(study=self.item), self.folder / "records.csv")
        return rows.assign(study=self.item)

    def over_prompts(self, name: str) -> Iterator[pd.DataFrame]:
        """For each set of prompts; "similarity" is the mean cosine between two classes' text embeddings."""
        shield, clip = self.shield_of(name), load_pipeline_clip()
        for value, chosen in self.params.studies.prompts.items():
            text = embed_prompts(clip, class_names(chosen, self.classes), templates(chosen))
            different = ~torch.eye(len(text), dtype=torch.bool)
            similarity = float((text @ text.T)[different].mean())
            own = shield.alignment
            alignment = ZeroShotClassifier(own.image_tower, own.preprocess, text).to(own.text.device)
            other = MultiShield(shield.classifier, alignment, shield.tolerance)
            yield self._worst_case(name, value, other, self._known(name)).assign(similarity=similarity)

    def over_tolerance(self, name: str) -> Iterator[pd.DataFrame]:
        """For each tolerance, the smallest first."""
        shield, attacked = self.shield_of(name), self._known(name)
        for tolerance in sorted(self.params.studies.tolerance):
            other = MultiShield(shield.classifier, shield.alignment, tolerance)
            yield self._worst_case(name, f"{tolerance:g}", other, attacked)

    def over_eps(self, name: str) -> Iterator[pd.DataFrame]:
        """For each radius, the smallest first: the shield's worst case, the classifier's, the shield under FGSM.

        FGSM is made on the classifier, or on the shield's own outputs: the weakest attack, which flatters any defence.
        """
        shield, attacker, data = self.shield_of(name), self.attacker_of(name), self.some
        attacked = dict.fromkeys((*COMPONENTS, "joint"), AttackedImages.untouched(data))
        for eps in sorted(self.params.studies.eps):
            ball = replace(attacker.ball, eps=eps)
            value = f"{eps:g}" if ball.norm == "L2" else f"{255 * eps:g}/255"
            _continue(replace(attacker, name=f"{name}, {value}", ball=ball), shield, data, attacked)
            given = {"ball": ball, "seed": attacker.seed, "ids": data.ids}
            weak = [fgsm(of, data.pixels, data.labels, **given) for of in (shield.classifier, shield)]
            images = (worst_case(shield, data, attacked), attacked[COMPONENTS[0]], *weak)
            for of, model, shown in zip(WHO, (shield, shield.classifier, shield, shield), images, strict=True):
                yield self._rows(name, value, of, model, shown, ball)

    def over_sigma(self, name: str) -> Iterator[pd.DataFrame]:
        """By sigma smoothed classifier, shield and (once) CLIP: certified and attacked, on a tenth of the images."""
        shield, attacker, data = self.shield_of(name), self.attacker_of(name), self.some[: -(-len(self.some) // 10)]
        models = {name: Undefended(shield.classifier), f"{name} with the shield": shield}
        models |= {"CLIP": Undefended(shield.alignment)} if name == self.params.classifiers[0] else {}
        options = {"budget": BUDGET, "resume": attacker.resume, "each": attacker.each, "seed": attacker.seed}
        for sigma in self.params.studies.sigma:
            for model, defence in models.items():
                more = options | {"name": f"{model}, sigma {sigma:g}", "ids": data.ids}
                radii = [sigma * r for r in RADII if r]
                rows = certify(defence, data.images, data.labels, sigma, DRAWS, radii=radii, **more)
                yield rows.assign(classifier=model, value=f"{sigma:g}")

    def _known(self, name: str) -> dict[str, AttackedImages]:
        """The baseline's images as those of the attack on the classifier; the other attacks have not begun."""
        attacked = dict.fromkeys((*COMPONENTS, "joint"), AttackedImages.untouched(self.some))
        return attacked | {COMPONENTS[0]: self.unaware_of(name)[:][self.chosen]}

    def _worst_case(self, name: str, value: str, shield: MultiShield, attacked: dict) -> pd.DataFrame:
        """The worst case at the experiment's radius, at which the attack on the classifier is known."""
        attacker = replace(self.attacker_of(name), name=f"{name}, {value}")
        _continue(attacker, shield, self.some, attacked, known=COMPONENTS[0])
        return self._rows(name, value, WHO[0], shield, worst_case(shield, self.some, attacked), attacker.ball)

    def _rows(self, name: str, value: str, of: str, model, shown: AttackedImages, ball: Ball) -> pd.DataFrame:
        rows = records.records_of(name, "worst_case", model, self.some, shown, ball)
        return rows.assign(value=value, of=of, similarity=float("nan"))


def _continue(attacker: Attacker, shield: MultiShield, data: Images, attacked: dict, known: str = "") -> None:
    """Attack each component but the known one, then both, on the images that resist so far; `attacked` is updated."""
    for number, name in enumerate((*COMPONENTS, "joint")):
        left = (~attacked[name].success).nonzero()[:, 0]
        if name == known or not len(left):
            continue
        if name == "joint":
            newer = attacker.joint(shield, data[left], [attacked[c][left] for c in COMPONENTS], long=1, rounds=0)
        else:
            newer = attacker.component(shield, data[left], number, name)
        attacked[name] = attacked[name].updated(left, newer)


def templates(chosen: PromptSet) -> list[str]:
    """The templates of a set of prompts, each with {} for the class name; "openai" is CLIP's own 80 for ImageNet."""
    if chosen.templates == "openai":
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

        return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    return chosen.templates


def check_prompts(params: Params, classes: list[str]) -> None:
    """Raises UserError if a small CLIP that the pipeline trains cannot read the prompts of the study."""
    from paper.models.clip import small_clip  # open_clip is slow to import

    clip = small_clip(params.alignment.tower, params.dataset.image_size)
    for chosen in params.studies.prompts.values():
        embed_prompts(clip, class_names(chosen, classes), templates(chosen))


def class_names(chosen: PromptSet, classes: list[str]) -> list[str]:
    """The classes' own names; numbers, which say nothing; or for each class the name of the next one."""
    if chosen.names == "numbers":
        return [f"object {number + 1}" for number in range(len(classes))]
    return classes[1:] + classes[:1] if chosen.names == "shifted" else classes


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per study, classifier, value, whose figure it is, and metric: ratio, low, high (95 % Wilson), n."""
    tables = []
    for (study, value, of), group in rows.groupby(["study", "value", "of"], sort=False):
        ratios = records.metrics(group).rename(columns={"value": "ratio"}).drop(columns="scenario")
        similarity = group.similarity.iloc[0]
        tables.append(ratios.assign(study=study, value=value, of=of, similarity=similarity))
    return pd.concat(tables, ignore_index=True)


def bounds(rows: pd.DataFrame) -> pd.DataFrame:
    """The study of sigma: a row per model, value, bound and radius: ratio, low, high (95 % Wilson), n.

    The bounds are "right", "held" and "attacked", see `multishield.certified_curve`.
    """
    tables = []
    for (study, model, value), group in rows.groupby(["study", "classifier", "value"], sort=False):
        curve = certified_curve(group, [float(value) * r for r in RADII]).melt(["radius", "n"], None, "bound", "ratio")
        low, high = zip(*(records.wilson(round(n * r), n) for n, r in curve[["n", "ratio"]].values), strict=True)
        tables.append(curve.assign(study=study, classifier=model, value=value, low=low, high=high))
    return pd.concat(tables, ignore_index=True)
