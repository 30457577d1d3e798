"""Stage 7, defences at equal clean rejection: is CLIP worth more than a threshold on the classifier's own confidence?

The defences of a family differ in one threshold: a larger one rejects more. Per family and image two numbers say all:
`t_clean`, the largest threshold at which the clean image is accepted, and `t_broken`, the largest one at which any
attacked image is accepted as a wrong class. So robust accuracy is exact at every rejection, on the same images.
"""

import math
from dataclasses import replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from multishield import defences, records
from multishield.attacks.joint import joint
from multishield.defences import Defence
from multishield.forward import scores_of
from multishield.images import AttackedImages, Images, StoredImages, folder_of
from multishield.shield import MultiShield, margin_over_others
from paper import paths
from paper.params.values import FAMILIES
from paper.stages.attacking import Attacking

REFERENCE, SHIELD = FAMILIES[0], "Multi-Shield"  # all others are tested against the reference
EARLIER = ("on CLIP", "paper", "joint", "worst_case")  # attacks of scenario 3 whose images every defence sees
RESAMPLES = 10_000  # fewer could not show a small p once it is corrected


class Family(Defence):
    """Margins of `defence`, less `threshold` times their slopes; `bound`: no class but the classifier's is accepted."""

    def __init__(self, defence: Defence, slopes: tuple = (1.0,), bound: bool = True):
        super().__init__()
        self.defence, self.bound, self.threshold = defence, bound, 0.0
        self.register_buffer("slopes", torch.tensor(slopes)[:, None])

    def scores(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.defence.scores(x)

    def margins(self, scores: tuple[Tensor, ...]) -> Tensor:
        return self.defence.margins(scores) - self.threshold * self.slopes.to(scores[0])

    def levels(self, pixels: Tensor) -> Tensor:
        """The largest threshold at which images (N,...) are accepted as each class, (N,K); -inf where at none."""
        margins, moves = self.defence.margins(scores_of(self, pixels)), self.slopes[:, 0] > 0
        levels = (margins[:, moves] / self.slopes[moves]).amin(1)
        levels = levels.masked_fill((margins[:, ~moves] < 0).any(1), -torch.inf)
        return levels.where(levels == levels.amax(1, keepdim=True), -torch.inf)  # one class alone is accepted


class Stage(Attacking):
    """See `Attacking`; the item is the classifier."""

    @cached_property
    def earlier(self) -> dict[str, StoredImages]:
        """The images of earlier attacks by name: "no_shield" on the classifier alone, then those of scenario 3."""
        folder = paths.artifacts("adaptive", self.item)
        return {"no_shield": self.unaware} | {name: StoredImages(folder_of(folder, name)) for name in EARLIER}

    def compare(self) -> pd.DataFrame:
        """Attack all families; write and return a row per family and image.

        Columns: classifier, defence, image, label, right (whether the class of the clean image is), t_clean, t_broken,
        attack (that breaks it at t_broken), forwards, backwards (of the family's own attack).
        """
        rows, named = [], families(self.shield, (self.validation if len(self.validation) else self.data).pixels)
        share, chunks = self.params.comparison.rejection, list(self.data.chunks())
        for family in named.values():  # the attacks aim at the strictest threshold
            t_clean = torch.cat([family.levels(self.data[chunk].pixels).amax(1) for chunk in chunks])
            family.threshold = float(t_clean.sort().values[int(share * len(t_clean))])
        for chunk in chunks:
            data, before = self.data[chunk], {name: images[chunk] for name, images in self.earlier.items()}
            attacked = {name: self._attacked(name, family, data, before) for name, family in named.items()}
            for name, images in attacked.items():
                StoredImages(folder_of(self.folder, name)).add(chunk.start, images)
            rows += [self._rows(name, family, data, before | attacked) for name, family in named.items()]
        table = pd.concat(rows, ignore_index=True).round(6)  # as the file has it
        records.save(table, self.folder / "records.csv")
        return table

    def _attacked(self, name: str, family: Family, data: Images, before: dict[str, AttackedImages]) -> AttackedImages:
        """The images after joint on a family at its strictest; one that resists is kept where it is nearest to evasion.

        A bound family cannot be broken on images that no attack has broken for the classifier. Others get all tries.
        """
        lost = before["no_shield"].success | before["worst_case"].success
        index = (lost | torch.tensor(not family.bound)).nonzero()[:, 0]
        if not len(index):
            return AttackedImages.untouched(data)
        starts = [replace(before[s][index], broken_by=["earlier"] * len(index)) for s in ("no_shield", "on CLIP")]
        options = vars(self.params.comparison.attack) | {"long": 1, "rounds": 0, "nearest": True}
        newer = self.attacker_of(self.item).run(joint, f"{name}:", family, data[index], starts, **options)
        return AttackedImages.untouched(data).updated(index, newer)

    def _rows(self, name: str, family: Family, data: Images, attacked: dict[str, AttackedImages]) -> pd.DataFrame:
        images = {"clean": data.pixels} | {source: of.images for source, of in attacked.items()}
        self.ball.checked_distance(images[name], data.pixels, "the comparison")
        levels = {source: family.levels(pixels) for source, pixels in images.items()}
        wrong = torch.stack([of.scatter(1, data.labels[:, None], -torch.inf).amax(1) for of in levels.values()])
        t_broken, source = wrong.max(0)
        columns = {"classifier": self.item, "defence": name, "image": data.ids, "label": data.labels}
        columns |= {"right": levels["clean"].argmax(1) == data.labels, "t_clean": levels["clean"].amax(1)}
        columns |= {"t_broken": t_broken, "attack": np.where(t_broken > -math.inf, np.array(list(images))[source], "")}
        columns |= {"forwards": attacked[name].forwards, "backwards": attacked[name].backwards}
        return pd.DataFrame({key: c.numpy() if isinstance(c, Tensor) else c for key, c in columns.items()})


def families(shield: MultiShield, pixels: Tensor) -> dict[str, Family]:
    """Every family by its name.

    Logits and cosines have no unit in common: where both models' margins are compared, it is in their standard
    deviations on images (N,C,H,W), labels apart.
    """
    classifier, clip, scores = shield.classifier, shield.alignment, scores_of(shield, pixels)
    k = scores[0].argmax(1, keepdim=True)
    margins = [margin_over_others(of).gather(1, k)[:, 0].double() for of in scores]
    means, (s, t) = [float(of.mean()) for of in margins], [float(of.std().clamp_min(1e-6)) for of in margins]
    made = (
        Family(defences.ConfidenceThreshold(classifier, 0.0)),
        Family(defences.ConfidenceThreshold(classifier, 0.0, of="probability"), (0.0, 1.0)),
        Family(defences.FeatureSqueezing(classifier), (0.0, 1.0)),
        Family(defences.ConsistentPrediction(classifier), (0.0, 1.0)),
        Family(defences.Unanimity((classifier, clip)), (0.0, 1.0)),  # its tolerance is minus the threshold
        Family(defences.Unanimity((classifier, classifier, clip), (0.0, *means)), (0.0, s, t)),
        # Here CLIP may decide without the classifier, or against it.
        Family(defences.ConfidenceThreshold(clip, 0.0), bound=False),
        Family(defences.SummedLogProbabilities(classifier, clip, s / t, 0.0), bound=False),
    )
    return dict(zip(FAMILIES, made, strict=True))


def curve(rows: pd.DataFrame) -> pd.DataFrame:
    """A family's exact curve at every clean rejection that it reaches: rejection, robust and clean, as fractions."""
    t, n = np.unique(rows.t_clean), len(rows)
    below = (np.searchsorted(np.sort(of), t) / n for of in (rows.t_clean, rows.t_broken, rows.t_clean[rows.right]))
    rejection, robust, lost = below
    return pd.DataFrame({"rejection": rejection, "robust": robust, "clean": rows.right.mean() - lost})


def curves(rows: pd.DataFrame, most: float) -> pd.DataFrame:
    """The `curve` of each classifier and family up to the clean rejection `most`, beyond which none was attacked."""
    groups = rows.groupby(["classifier", "defence"], sort=False)
    points = groups[["t_clean", "t_broken", "right"]].apply(curve).reset_index(["classifier", "defence"])
    return points[points.rejection <= most]


def mean_robust(t_clean: np.ndarray, t_broken: np.ndarray, most: float, attacked: float = math.inf) -> float:
    """Mean robust accuracy over clean rejections of 0, 1/N, ... up to `most`, at thresholds up to `attacked`."""
    t = np.sort(t_clean)[: math.ceil(most * len(t_clean))].clip(max=attacked)
    return float(np.searchsorted(np.sort(t_broken), t).mean() / len(t_broken))


def table(rows: pd.DataFrame, params, tolerance: float) -> pd.DataFrame:
    """A row per classifier and family: `mean_robust` with a 95 % interval, and its difference from the reference's.

    Intervals are of the paired bootstrap over images; no resample asks for a stricter threshold than was attacked. p is
    of no difference, corrected after Holm: the primary hypothesis for the number of classifiers, all others for theirs.
    "rejection", "robust" and "clean" are at the shield's tolerance, or the nearest lower rejection that is reached.
    """
    made = []
    for classifier, group in rows.groupby("classifier", sort=False):
        t = {name: of[["t_clean", "t_broken"]].to_numpy().T for name, of in group.groupby("defence", sort=False)}
        n, rng = len(t[REFERENCE][0]), np.random.default_rng(0)
        drawn = [np.arange(n), *rng.integers(0, n, (RESAMPLES, n))]
        last = {name: np.sort(of[0])[int(params.rejection * n)] for name, of in t.items()}
        means = {m: np.array([mean_robust(*of[:, i], params.rejection, last[m]) for i in drawn]) for m, of in t.items()}
        own = (t[SHIELD][0] < -tolerance).mean()
        for name, of in group.groupby("defence", sort=False):
            differences, row = means[name] - means[REFERENCE], {"classifier": classifier, "defence": name}
            for key, values in (("mean", means[name]), ("difference", differences)):
                row[key], (row[f"{key}_low"], row[f"{key}_high"]) = values[0], np.quantile(values, (0.025, 0.975))
            others, points = differences[1:], curve(of)
            p = 2 * (min((others <= 0).sum(), (others >= 0).sum()) + 1) / len(drawn)
            row |= {"p": math.nan if name == REFERENCE else min(1.0, p), "primary": name == params.primary, "n": n}
            made.append(row | points[points.rejection <= own].iloc[-1].to_dict())
    table = pd.DataFrame(made)
    return table.assign(p=table.groupby("primary").p.transform(holm))


def holm(p: pd.Series) -> pd.Series:
    """The p of several tests, corrected for their number (Holm 1979); NaN is no test."""
    order = p.dropna().sort_values()
    return (order * np.arange(len(order), 0, -1)).cummax().clip(upper=1.0).reindex(p.index)
