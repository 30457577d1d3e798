"""Defences at equal clean rejection: is CLIP worth more than a threshold on the classifier's own confidence?

A defence that rejects more is more robust by the paper's metric, so robust accuracies say something only where as many
clean images are rejected. A family of defences differs in one threshold, which is chosen on validation images for each
wanted rejection; what it then rejects of the evaluation images is part of the result.

One attack per family serves all of its thresholds: it aims at the strictest, and an image that resists is kept where it
was nearest to evasion. Where one margin decides it is APGD, elsewhere `joint`. Most families accept nothing that the
classifier alone does not accept: their attacks leave out the images on which no attack has broken the classifier. Then
every stored image, other families' and earlier stages' included, is shown to every defence: the worst case.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

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
from multishield.forward import outputs
from multishield.images import AttackedImages, Split
from multishield.portfolio import Attacker, untouched, updated
from multishield.records import wilson
from multishield.shards import Kept, Shards, cut
from multishield.shield import MultiShield, lead
from paper.params import Comparison

REFERENCE = "logit margin"  # what all others are tested against
FEWEST = 10  # validation images; fewer choose no threshold
COLUMNS = (
    *("classifier", "defence", "wanted", "own", "image", "label", "clean_decision", "attacked_decision", "attack"),
    "classes",
)


class Family(NamedTuple):
    """Defences that differ in a threshold.

    Attributes:
        build: a threshold to a defence; the larger, the more is rejected. low: where the threshold is looked for.
        scores: whose outputs its scores are, of `_models`.
        part: the number of the margin that decides alone; None where several do.
        bound: a class that it accepts is the classifier's, so that nothing else can be broken.
    """

    build: Callable[[float], nn.Module]
    low: float
    scores: tuple[str, ...]
    part: int | None = None
    bound: bool = True


def families(shield: MultiShield, clean: dict[str, Tensor]) -> dict[str, Family]:
    """Every family by its name, the reference first.

    Args:
        shield: its classifier and CLIP are in all of them.
        clean: the models' outputs for validation images. Logits and cosines have no unit in common: both models' leads
            are compared by their quantiles, or by their spread.
    """
    classifier, clip = shield.classifier, shield.alignment
    k = clean["classifier"].argmax(1, keepdim=True)
    leads = [lead(clean[name]).gather(1, k)[:, 0].double() for name in ("classifier", "CLIP")]
    scale = float(leads[0].std() / leads[1].std().clamp_min(1e-6))
    alone, both = ("classifier",), ("classifier", "CLIP")
    return {
        REFERENCE: Family(lambda t: ConfidenceThreshold(classifier, t), 0.0, alone, part=0),
        "softmax": Family(lambda t: ConfidenceThreshold(classifier, t, of="probability"), 0.0, alone, part=1),
        "squeezing": Family(
            lambda t: FeatureSqueezing(classifier, leads=(max(t, 0.0), t)), -1e3, ("classifier", "squeezed")
        ),
        "consistency": Family(
            lambda t: ConsistentPrediction(classifier, leads=(max(t, 0.0), t)), -1e3, ("classifier", "neighbour")
        ),
        # The tolerance is -t; a positive t asks for a lead of CLIP.
        "Multi-Shield": Family(lambda t: Unanimity((classifier, clip), (0.0, t)), -2.0, both),
        # Both models must lead, each by what the same share of validation images does not reach with it.
        "Multi-Shield, margins": Family(
            lambda q: Unanimity((classifier, clip), [float(of.quantile(min(q, 1.0))) for of in leads]), 0.0, both
        ),
        # Here CLIP may decide without the classifier, or against it.
        "CLIP's margin": Family(lambda t: ConfidenceThreshold(clip, t), 0.0, ("CLIP",), part=0, bound=False),
        "log-probabilities": Family(
            lambda t: SummedLogProbabilities(classifier, clip, scale, t), 0.0, both, part=0, bound=False
        ),
    }


def _models(shield: MultiShield) -> dict[str, nn.Module]:
    """The models whose outputs are the scores of all families."""
    classifier, squeezed = FeatureSqueezing(shield.classifier).models
    neighbour = ConsistentPrediction(classifier).models[1]
    return {"classifier": classifier, "CLIP": shield.alignment, "squeezed": squeezed, "neighbour": neighbour}


class Chosen(NamedTuple):
    """What is compared: the models, the families by name, of each the defences by the clean rejection that is wanted of
    them, and the shield's own rejection."""

    models: dict[str, nn.Module]
    families: dict[str, Family]
    defences: dict[str, dict[float, nn.Module]]
    own: float

    def strictest(self, name: str) -> nn.Module:
        """The defence of a family that rejects most."""
        return self.defences[name][max(self.defences[name])]


def choose(shield: MultiShield, validation: Split, params: Comparison) -> Chosen:
    """Every family at every wanted rejection, and at the shield's own, with thresholds from clean validation images.

    With fewer than `FEWEST` of these there is no family.
    """
    models = _models(shield)
    if len(validation) < FEWEST:
        return Chosen(models, {}, {}, float("nan"))
    known = {name: outputs(model, validation.pixels) for name, model in models.items()}
    own = shield.outputs((known["classifier"], known["CLIP"])).argmax(1) == known["CLIP"].shape[1]
    own = float(own.double().mean())
    found, defences = families(shield, known), {}
    for name, family in found.items():
        scores = tuple(known[model] for model in family.scores)
        levels = {w: threshold_for(family.build, scores, w, family.low) for w in sorted({*params.rejection, own})}
        defences[name] = {wanted: family.build(threshold) for wanted, threshold in levels.items()}
    return Chosen(models, found, defences, own)


class Compared(NamedTuple):
    """What `compare` has found: a row per defence and evaluation image, and each family's attacked images.

    The rows' columns are `COLUMNS`. "wanted" is the clean rejection that the threshold was chosen for, "own" where that
    is the shield's with its tolerance; "classes" is K, which as a decision means "reject"; "attack" is whose image was
    accepted as a wrong class, "clean" where no attack was needed, empty where none was.
    """

    rows: pd.DataFrame
    attacked: Kept


def compare(
    attacker: Attacker,
    shield: MultiShield,
    data: Split,
    validation: Split,
    params: Comparison,
    pool: dict[str, AttackedImages | Shards],
    folder: Path | None = None,
) -> Compared:
    """Every family at every wanted rejection, and at the shield's own.

    Args:
        data, validation: the images that are attacked; clean images that thresholds are chosen on. With fewer
            than `FEWEST` of these there are no rows.
        pool: images of earlier attacks by name: "baseline" on the classifier alone, "on CLIP", "adaptive" (the shield's
            worst case), and others.
        folder: where attacked images are kept, and only a part of them in memory; see `shards`.
    """
    kept, chosen, rows = Kept(folder), choose(shield, validation, params), []
    for part in cut(data) if chosen.families else ():
        before = {name: of[part] for name, of in pool.items()}
        rows += _compared(attacker, chosen, data[part], params, before, partial(kept.add, start=part.start))
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=list(COLUMNS))
    return Compared(table.assign(classifier=attacker.name)[list(COLUMNS)], kept)


def _compared(
    attacker: Attacker, chosen: Chosen, data: Split, params: Comparison, pool, keep
) -> Iterator[pd.DataFrame]:
    """The rows of some images: every image that any attack has made is shown to every defence."""
    images = {"clean": data.pixels} | {source: before.images for source, before in pool.items()}
    for name, family in chosen.families.items():
        found = _attacked(attacker, name, family, chosen.strictest(name), data, params, pool)
        keep(name, attacked=found)
        images[name] = found.images
    shown = {source: {m: outputs(model, x) for m, model in chosen.models.items()} for source, x in images.items()}
    for name, family in chosen.families.items():
        candidates = {source: tuple(of[m] for m in family.scores) for source, of in shown.items()}
        for wanted, defence in chosen.defences[name].items():
            own = wanted == chosen.own
            yield _verdicts(defence, candidates, data).assign(defence=name, wanted=wanted, own=own)


def _attacked(
    attacker: Attacker, name: str, family: Family, defence: nn.Module, data: Split, params: Comparison, pool
) -> AttackedImages:
    """After the attack on a family's strictest member; what cannot be broken stays as it is."""
    lost = pool["baseline"].success | pool["adaptive"].success
    at = (lost | torch.tensor(not family.bound)).nonzero()[:, 0]
    settings, starts = params.attack.model_dump(), ()
    if family.part is None:
        attack = partial(joint, nearest=True, long=1, rounds=0, **settings)
        starts = [pool[start][at] for start in ("baseline", *(["on CLIP"] if "CLIP" in family.scores else []))]
    else:
        attack = partial(one_margin, nearest=True, part=family.part, tag=name, **settings)
    found = untouched(data)
    if len(at):
        found = updated(found, at, attacker.run(attack, f"{name}:", defence, data[at], starts))
    attacker.ball.measured(found.images, data.pixels, f"the attack on {name}")
    return found


def _verdicts(defence: nn.Module, candidates: dict[str, tuple[Tensor, ...]], data: Split) -> pd.DataFrame:
    """Per image the decision on the clean one, and on the first candidate that is accepted as a wrong class."""
    decisions = {source: defence.outputs(scores) for source, scores in candidates.items()}
    rejected = decisions["clean"].shape[1] - 1
    before = decisions["clean"].argmax(1)
    after, attack = before.clone(), [""] * len(data)
    for source, out in decisions.items():
        decision = out.argmax(1)
        for i in ((decision != data.labels) & (decision != rejected)).nonzero()[:, 0].tolist():
            if not attack[i]:
                after[i], attack[i] = decision[i], source
    columns = {"image": data.ids, "label": data.labels, "clean_decision": before, "attacked_decision": after}
    frame = pd.DataFrame({name: t.numpy() for name, t in columns.items()})
    return frame.assign(attack=attack, classes=rejected)


def broken(rows: pd.DataFrame) -> pd.Series:
    """Where the attacker has an accepted wrong class."""
    return (rows.attacked_decision != rows.label) & (rows.attacked_decision != rows.classes)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per classifier, wanted rejection and defence, as fractions with 95 % Wilson intervals.

    `p` is of McNemar's exact test against the threshold on the logit margin at the same wanted rejection, on the same
    images: "gained" are robust with this defence alone, "lost" with the threshold alone. It is NaN for the threshold
    itself. Tests are not corrected for their number.
    """
    found = []
    for (classifier, wanted, own), group in rows.groupby(["classifier", "wanted", "own"], sort=False):
        robust = {name: ~broken(of).set_axis(of.image) for name, of in group.groupby("defence", sort=False)}
        simple = robust[REFERENCE]
        for name, of in group.groupby("defence", sort=False):
            gained, lost = int((robust[name] & ~simple).sum()), int((simple & ~robust[name]).sum())
            shares = {"rejection": of.clean_decision == of.classes, "clean": of.clean_decision == of.label}
            shares |= {"robust": ~broken(of), "correct": of.attacked_decision == of.label}
            row = {"classifier": classifier, "wanted": wanted, "own": own, "defence": name}
            for share, counted in shares.items():
                hits = int(counted.sum())
                ratio = (hits / len(of), *wilson(hits, len(of)))
                row |= dict(zip((share, f"{share}_low", f"{share}_high"), ratio, strict=True))
            p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
            row |= {"gained": gained, "lost": lost, "p": float("nan") if name == REFERENCE else p, "n": len(of)}
            found.append(row)
    return pd.DataFrame(found)
