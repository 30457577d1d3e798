"""Stage 8, studies: one thing is varied, all else stays as it is: CLIP's prompts, the tolerance, the attacker's radius.

Each value is attacked as the shield is in scenario 3, by APGD on each component and by the joint attack from there, on
the first images. Known results are not computed again: at the experiment's radius the baseline's images are the attack
on the classifier, and an image that is broken at a smaller radius, or tolerance, is broken at a larger one.
"""

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor, nn

from multishield import records
from multishield.attacks.pgd import fgsm
from multishield.images import AttackedImages, Images
from multishield.portfolio import Attacker, component_names, worst_case
from multishield.shield import MultiShield
from multishield.zero_shot import align, embed_prompts, prompt_similarity
from paper.models.alignment import load_pipeline_clip
from paper.params.sections import PromptSet
from paper.stages.base import Attacking

WHO = ("shield", "classifier", "shield, FGSM")  # whose robust accuracy it is, and under which attack
Attacked = dict[str, AttackedImages]


class Stage(Attacking):
    """See `Attacking`; the item is the study."""

    def run(self) -> pd.DataFrame:
        """The study with every classifier; write and return its records.

        Beside the columns of `records.COLUMNS` there are "study", "value", "of" (of `WHO`), and "similarity".
        """
        rows = pd.concat([row for name in self.params.classifiers for row in self._of(name)], ignore_index=True)
        records.save(rows.assign(study=self.item), self.folder / "records.csv")
        return rows.assign(study=self.item)

    def _of(self, name: str) -> Iterator[pd.DataFrame]:
        """The study with one classifier, on the first images."""
        vary = {"prompts": self.over_prompts, "tolerance": self.over_tolerances, "eps": self.over_radii}[self.item]
        data = self.data[: self.params.studies.images]
        return vary(self.attacker_of(name), self.shield_of(name), data, self.unaware_of(name)[: len(data)])

    def over_prompts(
        self, attacker: Attacker, shield: MultiShield, data: Images, baseline: AttackedImages
    ) -> Iterator[pd.DataFrame]:
        """For each set of prompts; "similarity" is the mean cosine between two classes' text embeddings."""
        clip = load_pipeline_clip()
        for value, chosen in self.params.studies.prompts.items():
            text = embed_prompts(clip, class_names(chosen, self.classes), templates(chosen))
            different = ~torch.eye(len(text), dtype=torch.bool)
            similarity = float(prompt_similarity(text)[different].mean())
            alignment = align(clip, text).to(shield.alignment.text.device)
            other = MultiShield(shield.classifier, alignment, shield.tolerance)
            rows = _behind(attacker, value, other, data, _before(other, data, baseline))
            yield rows.assign(similarity=similarity)

    def over_tolerances(
        self, attacker: Attacker, shield: MultiShield, data: Images, baseline: AttackedImages
    ) -> Iterator[pd.DataFrame]:
        """For each tolerance, the smallest first."""
        attacked = _before(shield, data, baseline)
        for tolerance in sorted(self.params.studies.tolerance):
            other = MultiShield(shield.classifier, shield.alignment, tolerance)
            yield _behind(attacker, f"{tolerance:g}", other, data, attacked)

    def over_radii(
        self, attacker: Attacker, shield: MultiShield, data: Images, baseline: AttackedImages
    ) -> Iterator[pd.DataFrame]:
        """For each radius, the smallest first: the shield's worst case, the classifier's, the shield under FGSM.

        FGSM is made on the classifier and shown to the shield: the weakest attack, which flatters any defence.
        """
        names, ball = component_names(shield, 2), attacker.ball
        attacked = _before(shield, data, AttackedImages.untouched(data))
        for eps in sorted(self.params.studies.eps):
            value = f"{eps:g}" if ball.norm == "L2" else f"{255 * eps:g}/255"
            other = replace(attacker, name=f"{attacker.name}, {value}", ball=replace(ball, eps=eps))
            _continue(other, shield, data, attacked, names)
            weak = fgsm(shield.classifier, data.pixels, data.labels, ball=other.ball, seed=other.seed, ids=data.ids)
            images = (worst_case(shield, data, attacked), attacked[names[0]], weak)
            for of, model, shown in zip(WHO, (shield, shield.classifier, shield), images, strict=True):
                yield _rows(attacker.name, other, value, of, model, data, shown)


def templates(chosen: PromptSet) -> list[str]:
    """The templates of a set of prompts, each with {} for the class name; "openai" is CLIP's own 80 for ImageNet."""
    if chosen.templates == "openai":
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

        return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    return chosen.templates


def class_names(chosen: PromptSet, classes: list[str]) -> list[str]:
    """The classes' own names; numbers, which say nothing; or for each class the name of the next one."""
    if chosen.names == "numbers":
        return [f"object {number + 1}" for number in range(len(classes))]
    return classes[1:] + classes[:1] if chosen.names == "shifted" else classes


def _before(shield: MultiShield, data: Images, baseline: AttackedImages) -> Attacked:
    """Images before any attack but the baseline's, by the names of the attacks on the components, and "joint"."""
    untouched, (classifier, clip) = AttackedImages.untouched(data), component_names(shield, 2)
    return {classifier: baseline, clip: untouched, "joint": untouched}


def _behind(attacker: Attacker, value: str, shield: MultiShield, data: Images, attacked: Attacked) -> pd.DataFrame:
    """The worst case at the experiment's radius, at which the attack on the classifier is known."""
    other = replace(attacker, name=f"{attacker.name}, {value}")
    _continue(other, shield, data, attacked, component_names(shield, 2)[1:])
    return _rows(attacker.name, other, value, WHO[0], shield, data, worst_case(shield, data, attacked))


def _continue(attacker: Attacker, shield: MultiShield, data: Images, attacked: Attacked, names: list[str]) -> None:
    """Attack those components, then both, each on the images it has not broken yet; `attacked` is updated."""
    components = component_names(shield, 2)
    for name in names:
        if len(left := _standing(attacked[name])):
            newer = attacker.component(shield, data[left], components.index(name), name)
            attacked[name] = attacked[name].updated(left, newer)
    if len(left := _standing(attacked["joint"])):
        newer = attacker.joint(shield, data[left], [attacked[name][left] for name in components])
        attacked["joint"] = attacked["joint"].updated(left, newer)


def _standing(attacked: AttackedImages) -> Tensor:
    """The indices of the images that are not broken yet."""
    return (~attacked.success).nonzero()[:, 0]


def _rows(
    name: str, attacker: Attacker, value: str, of: str, model: nn.Module, data: Images, shown: AttackedImages
) -> pd.DataFrame:
    rows = records.records_of(name, "worst_case", model, data, shown, attacker.ball)
    return rows.assign(value=value, of=of, similarity=float("nan"))


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per study, classifier, value, whose figure it is, and metric: ratio, low, high (95 % Wilson), n."""
    tables = []
    for (study, value, of), group in rows.groupby(["study", "value", "of"], sort=False):
        ratios = records.metrics(group).rename(columns={"value": "ratio"}).drop(columns="scenario")
        kept = {"study": study, "value": value, "of": of, "similarity": group.similarity.iloc[0]}
        tables.append(ratios.assign(**kept))
    return pd.concat(tables, ignore_index=True)
