"""Stage 7, defences at equal clean rejection: is CLIP worth more than a threshold on the classifier's own confidence?

A family of defences differs in one threshold, which is chosen on validation images for each wanted rejection. One
attack per family serves all of its thresholds: it aims at the strictest, and an image that resists is kept at its point
nearest to evasion. Most families accept nothing that the classifier alone does not accept: their attacks leave out the
images on which no attack has broken the classifier. Then every stored image is shown to every defence.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from multishield import records
from multishield.attacks.components import one_margin
from multishield.attacks.joint import joint
from multishield.defences import (
    ConfidenceThreshold,
    ConsistentPrediction,
    FeatureSqueezing,
    SummedLogProbabilities,
    Unanimity,
    threshold_for,
)
from multishield.forward import scores_of
from multishield.images import AttackedImages, Images, StoredImages, folder_of
from multishield.portfolio import Attacker
from multishield.records import broken, rejected, wilson
from multishield.shield import MultiShield, margin_over_others
from paper import paths
from paper.params.sections import Comparison
from paper.stages.base import Attacking

REFERENCE = "logit margin"  # all others are tested against it
FEWEST = 10  # validation images; fewer choose no threshold
EARLIER = ("on CLIP", "paper", "joint", "worst_case")  # attacks of scenario 3 whose images are shown to every defence


class Stage(Attacking):
    """See `Attacking`; the item is the classifier."""

    def compare(self) -> pd.DataFrame:
        """Attack and compare all families; write and return a row per defence, wanted rejection and image."""
        earlier = paths.artifacts("adaptive", self.item)
        pool = {"no_shield": self.unaware} | {name: StoredImages(folder_of(earlier, name)) for name in EARLIER}
        attacker, params = self.attacker_of(self.item), self.params.comparison
        rows = compare(attacker, self.shield, self.data, self.validation, params, pool, self.folder)
        records.save(rows, self.folder / "records.csv")
        return rows


class Family(NamedTuple):
    """Defences that differ in a threshold.

    Attributes:
        build: a threshold to a defence; a larger one rejects more. low: the lower end of the search for a threshold.
        scores: the name of its scores in `scores_by_name`.
        component: the number of the margin that decides alone; None where several do.
        bound: whether a class that it accepts is the classifier's, so that nothing else can be broken.
    """

    build: Callable[[float], nn.Module]
    low: float
    scores: str
    component: int | None = None
    bound: bool = True


def families(shield: MultiShield, clean: dict[str, tuple[Tensor, ...]]) -> dict[str, Family]:
    """Every family by its name, the reference first. Args: clean, `scores_by_name` of validation images.

    Logits and cosines have no unit in common: the margins of both models are compared by their quantiles, or spread.
    """
    classifier, clip = shield.classifier, shield.alignment
    k = clean["both"][0].argmax(1, keepdim=True)
    margins = [margin_over_others(scores).gather(1, k)[:, 0].double() for scores in clean["both"]]
    scale = float(margins[0].std() / margins[1].std().clamp_min(1e-6))
    return {
        REFERENCE: Family(lambda t: ConfidenceThreshold(classifier, t), 0.0, "classifier", 0),
        "softmax": Family(lambda t: ConfidenceThreshold(classifier, t, of="probability"), 0.0, "classifier", 1),
        "squeezing": Family(lambda t: FeatureSqueezing(classifier, required=(max(t, 0.0), t)), -1e3, "squeezing"),
        "consistency": Family(
            lambda t: ConsistentPrediction(classifier, required=(max(t, 0.0), t)), -1e3, "consistency"
        ),
        # The tolerance is -t; a positive t asks for a margin of CLIP.
        "Multi-Shield": Family(lambda t: Unanimity((classifier, clip), (0.0, t)), -2.0, "both"),
        # Each model's required margin is the q-quantile of its own margins on validation images.
        "Multi-Shield, margins": Family(
            lambda q: Unanimity((classifier, clip), [float(m.quantile(min(q, 1.0))) for m in margins]), 0.0, "both"
        ),
        # Here CLIP may decide without the classifier, or against it.
        "CLIP's margin": Family(lambda t: ConfidenceThreshold(clip, t), 0.0, "CLIP", 0, bound=False),
        "log-probabilities": Family(
            lambda t: SummedLogProbabilities(classifier, clip, scale, t), 0.0, "both", 0, bound=False
        ),
    }


def scores_by_name(shield: MultiShield, pixels: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """The scores of images for all families."""
    logits, cosines = scores_of(shield, pixels)
    return {
        "classifier": (logits,),
        "CLIP": (cosines,),
        "both": (logits, cosines),
        "squeezing": scores_of(FeatureSqueezing(shield.classifier), pixels),
        "consistency": scores_of(ConsistentPrediction(shield.classifier), pixels),
    }


def compare(
    attacker: Attacker,
    shield: MultiShield,
    data: Images,
    validation: Images,
    params: Comparison,
    pool: dict[str, AttackedImages | StoredImages],
    folder: Path | None = None,
) -> pd.DataFrame:
    """Records of every family at every wanted rejection, and at the shield's own; no rows with few validation images.

    Beside the columns of `records.COLUMNS` there are "defence"; "wanted", the clean rejection that the threshold was
    chosen for; and "own", whether that is the shield's with its tolerance.

    Args:
        data, validation: the images that are attacked; clean images that thresholds are chosen on.
        pool: images of earlier attacks by name: "no_shield" on the classifier alone, "worst_case" of the shield, ...
        folder: for each family's attacked images.
    """
    if len(validation) < FEWEST:
        return pd.DataFrame(columns=[*records.COLUMNS, "defence", "wanted", "own"])
    clean = scores_by_name(shield, validation.pixels)
    outputs = shield.outputs(clean["both"])
    own = float((outputs.argmax(1) == outputs.shape[1] - 1).double().mean())
    named, rows = families(shield, clean), []
    levels = {name: _levels(family, clean[family.scores], {*params.rejection, own}) for name, family in named.items()}
    for chunk in data.chunks():
        some, before = data[chunk], {name: attacked[chunk] for name, attacked in pool.items()}
        attacked = {}
        for name, family in named.items():
            strictest = levels[name][max(levels[name])]
            attacked[name] = _attacked(attacker, name, family, strictest, some, params, before)
            StoredImages(folder and folder_of(folder, name)).add(chunk.start, attacked[name])
        images = {"clean": some.pixels} | {name: a.images for name, a in (before | attacked).items()}
        shown = {source: scores_by_name(shield, x) for source, x in images.items()}
        for name, family in named.items():
            scores = {source: by_name[family.scores] for source, by_name in shown.items()}
            for wanted, defence in levels[name].items():
                row = _rows(defence, scores, images, some, attacker, attacked[name])
                rows.append(row.assign(defence=name, wanted=wanted, own=wanted == own))
    return pd.concat(rows, ignore_index=True)


def _levels(family: Family, clean: tuple[Tensor, ...], wanted: set[float]) -> dict[float, nn.Module]:
    """The defence of a family for each wanted rejection, with thresholds from the scores of clean images."""
    thresholds = {w: threshold_for(family.build, clean, w, family.low) for w in sorted(wanted)}
    return {w: family.build(threshold) for w, threshold in thresholds.items()}


def _attacked(
    attacker: Attacker, name: str, family: Family, defence: nn.Module, data: Images, params: Comparison, pool
) -> AttackedImages:
    """The images after the attack on a family's strictest member; an image that cannot be broken stays as it is."""
    lost = pool["no_shield"].success | pool["worst_case"].success
    index = (lost | torch.tensor(not family.bound)).nonzero()[:, 0]
    attacked, settings = AttackedImages.untouched(data), asdict(params.attack) | {"nearest": True}
    if not len(index):
        return attacked
    if family.component is None:
        starts = [pool[start][index] for start in ("no_shield", *(["on CLIP"] if family.scores == "both" else []))]
        newer = attacker.run(joint, f"{name}:", defence, data[index], starts, long=1, rounds=0, **settings)
    else:
        newer = attacker.run(
            one_margin, f"{name}:", defence, data[index], component=family.component, tag=name, **settings
        )
    return attacked.updated(index, newer)


def _rows(
    defence: nn.Module, scores: dict, images: dict[str, Tensor], data: Images, attacker: Attacker, own: AttackedImages
) -> pd.DataFrame:
    """Records of one defence: the decisions on the clean image, and on the first image that is accepted as wrong.

    Args: scores and images of each source, "clean" first; own, of the attack on this family.
    """
    outputs = {source: defence.outputs(s) for source, s in scores.items()}
    classes, clean = outputs["clean"].shape[1] - 1, outputs["clean"].argmax(1)
    after, attack, shown = clean.clone(), [""] * len(data), images["clean"].clone()
    for source, out in outputs.items():
        decision = out.argmax(1)
        for i in ((decision != data.labels) & (decision != classes)).nonzero()[:, 0].tolist():
            if not attack[i]:
                after[i], attack[i], shown[i] = decision[i], source, images[source][i]
    columns = {"image": data.ids, "label": data.labels, "clean_decision": clean, "attacked_decision": after}
    columns |= {"distance": attacker.ball.checked_distance(shown, data.pixels, "the comparison")}
    columns |= {"forwards": own.forwards, "backwards": own.backwards}
    frame = pd.DataFrame({name: t.numpy() for name, t in columns.items()})
    names = {"classifier": attacker.name, "scenario": "worst_case", "attack": attack, "classes": classes}
    nothing = {"clean_clip": -1, "attacked_clip": -1, "gap_clean": float("nan"), "gap_attacked": float("nan")}
    return frame.assign(**names, **nothing)[list(records.COLUMNS)]


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per classifier, wanted rejection and defence, as fractions with 95 % Wilson intervals.

    `p` is of McNemar's exact test against the threshold on the logit margin at the same wanted rejection, on the same
    images: "gained" are robust with this defence alone, "lost" with the threshold alone. It is NaN for the threshold
    itself. Tests are not corrected for their number.
    """
    table = []
    for (classifier, wanted, own), group in rows.groupby(["classifier", "wanted", "own"], sort=False):
        robust = {name: ~broken(of).set_axis(of.image) for name, of in group.groupby("defence", sort=False)}
        for name, of in group.groupby("defence", sort=False):
            ours, theirs = robust[name], robust[REFERENCE]
            gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
            row = {"classifier": classifier, "wanted": wanted, "own": own, "defence": name}
            shares = {"rejection": rejected(of, "clean"), "clean": of.clean_decision == of.label}
            shares |= {"robust": ~broken(of), "correct": of.attacked_decision == of.label}
            for share, counted in shares.items():
                hits = int(counted.sum())
                ratio = (hits / len(of), *wilson(hits, len(of)))
                row |= dict(zip((share, f"{share}_low", f"{share}_high"), ratio, strict=True))
            p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
            row |= {"gained": gained, "lost": lost, "p": float("nan") if name == REFERENCE else p, "n": len(of)}
            table.append(row)
    return pd.DataFrame(table)
