"""Stage 7, defences at equal clean rejection: is CLIP worth more than a threshold on the classifier's own confidence?

A family of defences differs in one threshold, which is chosen on validation images for each wanted rejection. One
attack per family serves all of its thresholds: it aims at the strictest, and an image that resists is kept at its point
nearest to evasion. Where a family accepts only the classifier's class, images that the classifier holds are left out.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from multishield import defences, records
from multishield.attacks.components import one_margin
from multishield.attacks.joint import joint
from multishield.attacks.threat_model import evaded
from multishield.forward import scores_of
from multishield.images import AttackedImages, Images, StoredImages, folder_of
from multishield.records import broken, rejected, wilson
from multishield.shield import MultiShield, margin_over_others
from paper import paths
from paper.stages.attacking import Attacking

REFERENCE = "logit margin"  # all others are tested against it
FEWEST = 10  # validation images; fewer choose no threshold
EARLIER = ("on CLIP", "paper", "joint", "worst_case")  # attacks of scenario 3 whose images every defence sees


class Family(NamedTuple):
    """Defences that differ in a threshold."""

    build: Callable[[float], nn.Module]  # a threshold to a defence; a larger one rejects more
    scores: str  # the name of its scores in `scores_by_name`
    low: float = 0.0  # the lower end of the search for a threshold
    component: int | None = None  # the number of the margin that decides alone; None where several do
    bound: bool = True  # it accepts no class but the classifier's, so that nothing else can be broken


class Stage(Attacking):
    """See `Attacking`; the item is the classifier."""

    @cached_property
    def earlier(self) -> dict[str, StoredImages]:
        """The images of earlier attacks by name: "no_shield" on the classifier alone, then those of scenario 3."""
        folder = paths.artifacts("adaptive", self.item)
        return {"no_shield": self.unaware} | {name: StoredImages(folder_of(folder, name)) for name in EARLIER}

    def compare(self) -> pd.DataFrame:
        """Attack and compare all families; write and return a row per defence, wanted rejection and image.

        Beside the columns of `records.COLUMNS` there are "defence"; "wanted", the clean rejection that the threshold
        was chosen for; and "own", whether that is the shield's own. With few validation images there are no rows.
        """
        if len(self.validation) < FEWEST:
            rows = pd.DataFrame(columns=[*records.COLUMNS, "defence", "wanted", "own"])
        else:
            rows = pd.concat(self._all_rows(), ignore_index=True)
        records.save(rows, self.folder / "records.csv")
        return rows

    def _all_rows(self) -> list[pd.DataFrame]:
        clean = scores_by_name(self.shield, self.validation.pixels)
        outputs = self.shield.outputs(clean["both"])
        own = float((outputs.argmax(1) == outputs.shape[1] - 1).double().mean())
        levels, named, rows = sorted({*self.params.comparison.rejection, own}), families(self.shield, clean), []
        members = {
            (name, level): family.build(defences.threshold_for(family.build, clean[family.scores], level, family.low))
            for name, family in named.items()
            for level in levels
        }
        for chunk in self.data.chunks():
            data, before = self.data[chunk], {name: images[chunk] for name, images in self.earlier.items()}
            attacked = {}
            for name, family in named.items():
                attacked[name] = self._attacked(name, family, members[name, levels[-1]], data, before)
                StoredImages(folder_of(self.folder, name)).add(chunk.start, attacked[name])
            images = {"clean": data.pixels} | {name: a.images for name, a in (before | attacked).items()}
            shown = {source: scores_by_name(self.shield, x) for source, x in images.items()}
            for (name, wanted), defence in members.items():
                scores = {source: by_name[named[name].scores] for source, by_name in shown.items()}
                row = self._rows(defence, scores, images, data, attacked[name])
                rows.append(row.assign(defence=name, wanted=wanted, own=wanted == own))
        return rows

    def _attacked(
        self, name: str, family: Family, strictest: nn.Module, data: Images, before: dict[str, AttackedImages]
    ) -> AttackedImages:
        """The images after the attack on a family; an image that cannot be broken stays as it is."""
        lost = before["no_shield"].success | before["worst_case"].success
        index = (lost | torch.tensor(not family.bound)).nonzero()[:, 0]
        if not len(index):
            return AttackedImages.untouched(data)
        attack, starts, options = one_margin, (), {"component": family.component, "tag": name}
        if family.component is None:
            names = ("no_shield", "on CLIP") if family.scores == "both" else ("no_shield",)
            attack, starts, options = joint, [before[start][index] for start in names], {"long": 1, "rounds": 0}
        options |= asdict(self.params.comparison.attack) | {"nearest": True}
        newer = self.attacker_of(self.item).run(attack, f"{name}:", strictest, data[index], starts, **options)
        return AttackedImages.untouched(data).updated(index, newer)

    def _rows(
        self, defence: nn.Module, scores: dict, images: dict[str, Tensor], data: Images, own: AttackedImages
    ) -> pd.DataFrame:
        """Records of one defence: its decisions on the clean image, and on the first image that it accepts as wrong.

        `scores` and `images` are by source, "clean" first; `own` is the attack on this family.
        """
        outputs = {source: defence.outputs(s) for source, s in scores.items()}
        classes, clean = outputs["clean"].shape[1] - 1, outputs["clean"].argmax(1)
        after, attack, shown = clean.clone(), np.full(len(data), "", object), data.pixels.clone()
        for source, out in outputs.items():
            new = evaded(out, data.labels) & torch.from_numpy(attack == "")
            after[new], attack[new.numpy()], shown[new] = out.argmax(1)[new], source, images[source][new]
        distance, nan = self.ball.checked_distance(shown, data.pixels, "the comparison"), float("nan")
        tensors = (data.ids, data.labels, clean, after, distance, own.forwards, own.backwards)
        image, label, clean, after, distance, *passes = (t.numpy() for t in tensors)
        decisions = (image, label, classes, clean, after, -1, -1, nan, nan)
        columns = (self.item, "worst_case", *decisions, distance, attack, *passes)
        return pd.DataFrame(dict(zip(records.COLUMNS, columns, strict=True)))


def families(shield: MultiShield, clean: dict[str, tuple[Tensor, ...]]) -> dict[str, Family]:
    """Every family by its name, the reference first, from the `scores_by_name` of validation images.

    Logits and cosines have no unit in common: the margins of both models are compared by their quantiles, or spread.
    """
    classifier, clip = shield.classifier, shield.alignment
    k = clean["both"][0].argmax(1, keepdim=True)
    margins = [margin_over_others(scores).gather(1, k)[:, 0].double() for scores in clean["both"]]
    scale = float(margins[0].std() / margins[1].std().clamp_min(1e-6))

    def twice(defence: type) -> Callable[[float], nn.Module]:
        return lambda t: defence(classifier, required=(max(t, 0.0), t))

    def by_quantile(q: float) -> nn.Module:
        """Each model's required margin is the q-quantile of its own margins on validation images."""
        return defences.Unanimity((classifier, clip), [float(m.quantile(min(q, 1.0))) for m in margins])

    return {
        REFERENCE: Family(lambda t: defences.ConfidenceThreshold(classifier, t), "classifier", component=0),
        "softmax": Family(
            lambda t: defences.ConfidenceThreshold(classifier, t, of="probability"), "classifier", component=1
        ),
        "squeezing": Family(twice(defences.FeatureSqueezing), "squeezing", -1e3),
        "consistency": Family(twice(defences.ConsistentPrediction), "consistency", -1e3),
        # The tolerance is -t; a positive t asks for a margin of CLIP.
        "Multi-Shield": Family(lambda t: defences.Unanimity((classifier, clip), (0.0, t)), "both", -2.0),
        "Multi-Shield, margins": Family(by_quantile, "both"),
        # Here CLIP may decide without the classifier, or against it.
        "CLIP's margin": Family(lambda t: defences.ConfidenceThreshold(clip, t), "CLIP", component=0, bound=False),
        "log-probabilities": Family(
            lambda t: defences.SummedLogProbabilities(classifier, clip, scale, t), "both", component=0, bound=False
        ),
    }


def scores_by_name(shield: MultiShield, pixels: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """The scores of images for all families."""
    logits, cosines = scores_of(shield, pixels)
    return {
        "classifier": (logits,),
        "CLIP": (cosines,),
        "both": (logits, cosines),
        "squeezing": scores_of(defences.FeatureSqueezing(shield.classifier), pixels),
        "consistency": scores_of(defences.ConsistentPrediction(shield.classifier), pixels),
    }


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per classifier, wanted rejection and defence, as fractions with 95 % Wilson intervals.

    `p` is of McNemar's exact test against the threshold on the logit margin (there NaN), on the same images: "gained"
    are robust with this defence alone, "lost" with the threshold alone. Tests are not corrected for their number.
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
            for share, hits in ((share, int(counted.sum())) for share, counted in shares.items()):
                row[share], (row[f"{share}_low"], row[f"{share}_high"]) = hits / len(of), wilson(hits, len(of))
            p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
            row |= {"gained": gained, "lost": lost, "p": float("nan") if name == REFERENCE else p, "n": len(of)}
            table.append(row)
    return pd.DataFrame(table)
