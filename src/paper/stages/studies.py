"""Studies: one thing is varied, all else stays as it is: CLIP's prompts, the tolerance, the attacker's radius.

Each value is attacked as the shield is in scenario 3, by APGD on each part and by the joint attack from there, on the
first images. What is known is not computed again: at the experiment's radius the baseline's images are the attack on
the classifier, and an image that is broken at a smaller radius, or at a smaller tolerance, is broken at a larger one.
"""

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd
import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor, nn

from multishield import records
from multishield.attacks.pgd import fgsm
from multishield.images import AttackedImages, Split
from multishield.portfolio import Attacker, part_names, untouched, updated, worst_case
from multishield.shield import MultiShield
from multishield.verdicts import records_of
from paper.models.clip import Clip
from paper.models.zero_shot import align, keep_embeddings, prompt_similarity
from paper.params import PromptSet, Studies

WHO = ("shield", "classifier", "shield, FGSM")  # whose robust accuracy it is, and under which attack


def study(
    name: str,
    attacker: Attacker,
    shield: MultiShield,
    data: Split,
    params: Studies,
    baseline: AttackedImages,
    clip: Clip,
    classes: list[str],
) -> pd.DataFrame:
    """Records (`evaluation.records`) of one study on the first images, and the columns study, value, of, similarity.

    Args:
        name: one of `params.values.STUDIES`. attacker: his radius is the experiment's.
        baseline: the images that AutoAttack has made of `data` on the classifier alone.
        clip, classes: for the prompts, with both towers, and the classes' names.
    """
    few = data[: params.images]
    known = baseline[torch.arange(len(few))]
    if name == "eps":
        found = over_radii(attacker, shield, few, params)
    elif name == "tolerance":
        found = over_tolerances(attacker, shield, few, params, known)
    else:
        found = over_prompts(attacker, shield, few, params, known, clip, classes)
    return pd.concat(list(found), ignore_index=True).assign(study=name)


def over_prompts(
    attacker: Attacker, shield: MultiShield, data: Split, params: Studies, baseline, clip: Clip, classes: list[str]
) -> Iterator[pd.DataFrame]:
    """For each set of prompts; "similarity" is the mean cosine between two classes' text embeddings."""
    for value, chosen in params.prompts.items():
        text = keep_embeddings(clip, called(chosen, classes), templates(chosen))
        apart = ~torch.eye(len(text), dtype=torch.bool)
        similarity = float(prompt_similarity(text)[apart].mean())
        alignment = align(clip, text).to(shield.alignment.text.device)
        other = MultiShield(shield.classifier, alignment, shield.tolerance)
        found = _untouched(other, data, baseline)
        yield _behind(attacker, value, other, data, found).assign(similarity=similarity)


def templates(chosen: PromptSet) -> list[str]:
    """The templates of a set of prompts, each with {} for the class name; "openai" is CLIP's own 80 for ImageNet."""
    if chosen.templates == "openai":
        return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    return chosen.templates


def called(chosen: PromptSet, classes: list[str]) -> list[str]:
    """What the classes are called: by their own names; by numbers, which say nothing; each by the next one's name."""
    if chosen.names == "numbers":
        return [f"object {number + 1}" for number in range(len(classes))]
    return classes[1:] + classes[:1] if chosen.names == "shifted" else classes


def over_tolerances(
    attacker: Attacker, shield: MultiShield, data: Split, params: Studies, baseline: AttackedImages
) -> Iterator[pd.DataFrame]:
    """For each tolerance, the smallest first."""
    found = _untouched(shield, data, baseline)
    for tolerance in sorted(params.tolerance):
        other = MultiShield(shield.classifier, shield.alignment, tolerance)
        yield _behind(attacker, f"{tolerance:g}", other, data, found)


def _untouched(shield: MultiShield, data: Split, baseline: AttackedImages | None = None) -> dict[str, AttackedImages]:
    """Images before any attack but the baseline's, by the names of the attacks on the parts, and of the joint one."""
    before, (classifier, clip) = untouched(data), part_names(shield, 2)
    return {classifier: baseline or before, clip: before, "joint": before}


def _behind(attacker: Attacker, value: str, shield: MultiShield, data: Split, found: dict) -> pd.DataFrame:
    """The worst case at the experiment's radius, where the attack on the classifier is known."""
    at = attacker.at(value, attacker.params, attacker.ball)
    _go_on(at, shield, data, found, part_names(shield, 2)[1:])
    return _rows(attacker, at, value, WHO[0], shield, data, worst_case(shield, data, found))


def _go_on(at: Attacker, shield: MultiShield, data: Split, found: dict[str, AttackedImages], parts) -> None:
    """Attack those parts, then both, each on what it has not broken yet; `found` is brought up to date."""
    names = part_names(shield, 2)
    for part in parts:
        if len(left := _standing(found[part])):
            made = at.part(shield, data[left], names.index(part), part)
            found[part] = updated(found[part], left, made)
    if len(left := _standing(found["joint"])):
        made = at.joint(shield, data[left], [found[part][left] for part in names])
        found["joint"] = updated(found["joint"], left, made)


def over_radii(attacker: Attacker, shield: MultiShield, data: Split, params: Studies) -> Iterator[pd.DataFrame]:
    """For each radius, the smallest first: the shield's worst case, the classifier's, the shield under FGSM.

    FGSM is made on the classifier and shown to the shield: the weakest attack, which flatters any defence.
    """
    found, parts = _untouched(shield, data), part_names(shield, 2)
    for eps in sorted(params.eps):
        value = f"{eps:g}" if attacker.ball.norm == "L2" else f"{255 * eps:g}/255"
        at = attacker.at(value, attacker.params, replace(attacker.ball, eps=eps))
        _go_on(at, shield, data, found, parts)
        ball = {"eps": eps, "norm": at.ball.norm}
        weak = fgsm(shield.classifier, data.pixels, data.labels, seed=at.seed, ids=data.ids, **ball)
        made = (worst_case(shield, data, found), found[parts[0]], weak)
        for of, model, images in zip(WHO, (shield, shield.classifier, shield), made, strict=True):
            yield _rows(attacker, at, value, of, model, data, images)


def _standing(found: AttackedImages) -> Tensor:
    """The indices of the images that are not broken yet."""
    return (~found.success).nonzero()[:, 0]


def _rows(
    attacker: Attacker, at: Attacker, value: str, of: str, model: nn.Module, data: Split, found: AttackedImages
) -> pd.DataFrame:
    frame = records_of(attacker.name, "adaptive", model, data, found, at.ball)
    return frame.assign(value=value, of=of, similarity=float("nan"))


def table(rows: pd.DataFrame, classes: int) -> pd.DataFrame:
    """A row per study, classifier, value, whose figure it is, and metric: ratio, low, high (95 % Wilson), n."""
    found = []
    keys = ["study", "value", "of"]
    for key, group in rows.groupby(keys, sort=False):
        kept = dict(zip(keys, key, strict=True)) | {"similarity": group.similarity.iloc[0]}
        ratios = records.metrics(group, classes).rename(columns={"value": "ratio"}).drop(columns="scenario")
        found.append(ratios.assign(**kept))
    return pd.concat(found, ignore_index=True)
