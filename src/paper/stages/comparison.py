"""Stage 7, defences at equal clean rejection: is CLIP worth more than a threshold on the classifier's own confidence?

The defences of a family differ in one threshold: a larger one rejects more. Per family and image two numbers say all:
`t_clean`, the largest threshold at which the clean image is accepted, and `t_broken`, the largest one at which any
attacked image is accepted as a wrong class. So robust accuracy is exact at every rejection, on the same images.
"""

import copy
import math
from dataclasses import replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from multishield import records
from multishield.attacks.joint import joint
from multishield.attacks.random_streams import keys
from multishield.forward import scores_of
from multishield.images import AttackedImages, Images, StoredImages, folder_of
from multishield.portfolio import ALPHAS, robustness_curve
from paper import paths
from paper.params.values import FAMILIES
from paper.stages.attacking import Attacking
from paper.stages.families import SIGNS, Family, families, signs_of_failure

REFERENCE, SHIELD = FAMILIES[0], "Multi-Shield"  # all others are tested against the reference
EARLIER = ("on CLIP", "paper", "joint", "worst_case")  # attacks of scenario 3 whose images every defence sees
ALONE = ("random noise", "black box", "on CLIP", "no_shield", "paper", "joint")  # each is shown alone, too
RESAMPLES, DEPLOYED = 10_000, 0.05  # fewer show no small p once it is corrected; the clean rejection wanted in use
ENOUGH = 0.005  # passes double until a doubling breaks a smaller share of the images


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
        attack (that breaks it at t_broken), "t, ATTACK" for each of `ALONE` and the family's own attacks, squared
        (whether of its own attacks Square alone breaks it), forwards, backwards (of its own attacks), those of
        `_attacked`, held (at how many of `ALPHAS`, where as many clean images are rejected as by the shield), refused
        (whether the clean image is, at the threshold that `calibrate` chooses for `DEPLOYED` on calibration images).
        """
        others, wanted = (self.calibration if len(self.calibration) else self.data).pixels, self.params.comparison
        rows, named, chunks, n = [], families(self.shield, others, wanted.cpr), list(self.data.chunks()), len(self.data)
        alike, deployed, k = {}, {}, max(int(DEPLOYED * (len(others) + 1)), 1)
        clean = {name: torch.cat([f.levels(self.data[c].pixels).amax(1) for c in chunks]) for name, f in named.items()}
        rejected = min(int((clean[SHIELD] < -self.shield.tolerance).sum()), n - 1)
        for name, family in named.items():  # the attacks aim at the strictest threshold
            at = [int(wanted.rejection * n), rejected]
            family.threshold, alike[name] = clean[name].sort().values[at].tolist()
            deployed[name] = float(family.levels(others).amax(1).kthvalue(k).values)
        for chunk in chunks:
            data, before = self.data[chunk], {name: images[chunk] for name, images in self.earlier.items()}
            noise = self.ball.random(data.pixels, keys(self.params.seed, "noise", data.ids))
            before["random noise"] = replace(AttackedImages.untouched(data), images=noise)
            before["black box"] = self.attacker_of(self.item).black_box(self.shield, data)
            about, shown = {}, before.copy()
            for name, family in named.items():
                shown[name], about[name] = self._attacked(name, family, data, before)
                StoredImages(folder_of(self.folder, name)).add(chunk.start, shown[name])
            seen = {source: scores_of(self.shield, of.images) for source, of in shown.items()}
            for name, family in named.items():
                of_family = self._rows(name, family, data, shown, seen).assign(**about[name])
                of_family["refused"] = of_family.t_clean < deployed[name]
                rows.append(of_family.assign(held=self._held(name, family, alike[name], data, of_family.t_broken)))
        table = pd.concat(rows, ignore_index=True).round(6)  # as the file has it
        records.save(table, self.folder / "records.csv")
        return table

    def _attacked(self, name: str, family: Family, data: Images, before: dict) -> tuple[AttackedImages, dict]:
        """Per image the most accepted one of a family's own attacks at its strictest, and columns about the attacks.

        The attacks are joint from earlier images, restarts from random points, long runs from the most accepted images,
        and the black box. Each long run doubles all passes so far, until one breaks fewer images than `ENOUGH`. Where
        no attack has broken the classifier, no bound family can be broken. The columns: captured (how many restarts
        break the image), doubling (whether the last long run does), steps (of that run), and `SIGNS`.
        """
        lost = before["no_shield"].success | before["worst_case"].success | torch.tensor(not family.bound)
        wanted, untouched = self.params.comparison.attack, AttackedImages.untouched(data)
        attacker = self.attacker_of(f"{self.item}, {name}")

        def run(number: int, left: Tensor, *starts: AttackedImages, targets=wanted.targets, long=1) -> AttackedImages:
            if not len(left):
                return untouched
            begun = [replace(of[left], broken_by=["earlier"] * len(left)) for of in starts]
            options = {"targets": targets, "steps": wanted.steps, "long": long, "rounds": 0, "nearest": True}
            other = replace(attacker, seed=attacker.seed + number)
            return untouched.updated(left, other.run(joint, f"joint {number}", family, data[left], begun, **options))

        left, number = lost.nonzero()[:, 0], wanted.restarts
        restarts = [run(n + 1, left) for n in range(number)]
        last = run(0, left, before["no_shield"], before["on CLIP"], targets=0)
        best = most_accepted(family, [last, *restarts], data.labels)
        while number == wanted.restarts or last.success.sum() >= ENOUGH * len(data):
            left, number = (lost & ~best.success).nonzero()[:, 0], number + 1
            long = max(best.backwards[left].tolist(), default=wanted.steps) // wanted.steps  # all passes so far
            last = run(number, left, best, targets=0, long=long)
            best = most_accepted(family, [best, last], data.labels)
        left = (lost & ~best.success).nonzero()[:, 0]
        squared = attacker.square_on_survivors(family, data[left], untouched[left])
        attacked = most_accepted(family, [best, untouched.updated(left, squared)], data.labels)
        about = {"captured": sum(of.success.int() for of in restarts), "doubling": last.success}
        left = (lost & ~attacked.success).nonzero()[:, 0]
        about |= signs_of_failure(family, attacked.images, data, left, self.ball, long * wanted.steps)
        return attacked, {key: of.numpy() for key, of in about.items()} | {"steps": long * wanted.steps}

    def _rows(self, name: str, family: Family, data: Images, attacked: dict, seen: dict) -> pd.DataFrame:
        images = {"clean": data.pixels} | {source: of.images for source, of in attacked.items()}
        self.ball.checked_distance(images[name], data.pixels, "the comparison")
        clean, sources = family.levels(data.pixels), np.array(list(images))
        t = {source: family.wrong_level(x, data.labels, seen.get(source, ())) for source, x in images.items()}
        t_broken, source = torch.stack(list(t.values())).max(0)
        columns = {"classifier": self.item, "defence": name, "image": data.ids, "label": data.labels}
        columns |= {"right": clean.argmax(1) == data.labels, "t_clean": clean.amax(1), "t_broken": t_broken}
        columns |= {"attack": np.where(t_broken > -math.inf, sources[source], "")}
        columns |= {f"t, {source}": t[source] for source in ALONE} | {"t, own": t[name]}
        columns |= {"squared": [by == "square" for by in attacked[name].broken_by]}
        columns |= {"forwards": attacked[name].forwards, "backwards": attacked[name].backwards}
        return pd.DataFrame({key: c.numpy() if isinstance(c, Tensor) else c for key, c in columns.items()})

    def _held(self, name: str, family: Family, threshold: float, data: Images, t_broken: pd.Series) -> np.ndarray:
        """At how many of `ALPHAS` each image is held by the family with that threshold, against both attackers."""
        held, left = np.zeros(len(data), int), np.flatnonzero(t_broken < threshold)
        if len(left):
            family, some = copy.copy(family), data[torch.from_numpy(left)]
            family.threshold, attacker = threshold, self.attacker_of(f"{self.item}, {name}")
            unbroken, denied = AttackedImages.untouched(some), attacker.denial(family, some)
            held[left] = attacker.held_at_each_alpha(family, some, unbroken, denied).sum(1).numpy()
        return held


def most_accepted(family: Family, runs: list[AttackedImages], labels: Tensor) -> AttackedImages:
    """Per image the one of several runs that the largest threshold accepts as a wrong class; passes add up."""
    best = torch.stack([family.wrong_level(run.images, labels) for run in runs]).argmax(0)
    images = torch.stack([run.images for run in runs])[best, torch.arange(len(labels))]
    names = [next(filter(None, of), "") for of in zip(*(run.broken_by for run in runs), strict=True)]
    return AttackedImages(images, names, sum(run.forwards for run in runs), sum(run.backwards for run in runs))


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


def mean_robust(t: np.ndarray, drawn: np.ndarray, most: float, attacked: float = math.inf) -> np.ndarray:
    """Mean robust accuracy over clean rejections of 0, 1/N, ... up to `most`, at thresholds up to `attacked`, (R,).

    `t` has the rows t_clean and t_broken (2,N); `drawn` says how often each image is in each of R resamples (R,N).
    """
    (clean, broken), n, wanted = t, t.shape[1], math.ceil(most * t.shape[1])
    order, by_broken = clean.argsort(kind="stable"), broken.argsort(kind="stable")
    # How many of the wanted thresholds, the smallest of the resample, are that of each image.
    asked = np.diff(drawn[:, order].cumsum(1).clip(max=wanted), axis=1, prepend=0)
    below = np.searchsorted(broken[by_broken], clean[order].clip(max=attacked))  # images that hold at each threshold
    held = np.pad(drawn[:, by_broken].cumsum(1), ((0, 0), (1, 0)))[:, below]
    return (asked * held).sum(1) / (wanted * n)


def table(rows: pd.DataFrame, params, tolerance: float) -> pd.DataFrame:
    """A row per classifier and family: `mean_robust` with a 95 % interval, and its difference from the reference's.

    Intervals are of the paired bootstrap over images; no resample asks for a stricter threshold than was attacked. p is
    of no difference, corrected after Holm: the primary hypothesis for the number of classifiers, all others for theirs.
    "rejection", "robust" and "clean" are at the shield's tolerance, or the nearest lower rejection that is reached.
    "refused" is the clean rejection of a threshold chosen on calibration images, with its Wilson interval.
    """
    made = []
    for classifier, group in rows.groupby("classifier", sort=False):
        t = {name: of[["t_clean", "t_broken"]].to_numpy().T for name, of in group.groupby("defence", sort=False)}
        n = len(t[REFERENCE][0])
        drawn = np.vstack([np.ones(n, int), np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)])
        last = {name: np.sort(of[0])[int(params.rejection * n)] for name, of in t.items()}
        means = {name: mean_robust(of, drawn, params.rejection, last[name]) for name, of in t.items()}
        own = (t[SHIELD][0] < -tolerance).mean()
        for name, of in group.groupby("defence", sort=False):
            differences, row = means[name] - means[REFERENCE], {"classifier": classifier, "defence": name}
            for key, values in (("mean", means[name]), ("difference", differences)):
                row[key], (row[f"{key}_low"], row[f"{key}_high"]) = values[0], np.quantile(values, (0.025, 0.975))
            others, points = differences[1:], curve(of)
            p = 2 * (min((others <= 0).sum(), (others >= 0).sum()) + 1) / len(drawn)
            row |= {"p": math.nan if name == REFERENCE else min(1.0, p), "primary": name == params.primary, "n": n}
            row["refused"], bounds = of.refused.mean(), records.wilson(of.refused.sum(), n)
            row["refused_low"], row["refused_high"] = bounds
            made.append(row | points[points.rejection <= own].iloc[-1].to_dict())
    table = pd.DataFrame(made)
    return table.assign(p=table.groupby("primary").p.transform(holm))


def completeness(rows: pd.DataFrame, params) -> pd.DataFrame:
    """How much the attacks may have missed: a row per classifier and family, at its strictest threshold.

    docs/comparison.md explains the columns: robust accuracies ("robust, ..."), numbers of images, passes, steps, the
    sanity rules that a family's attacks violate. `Chao (1987) <https://doi.org/10.2307/2531532>`_ has the bound.
    """
    made, rng, restarts = [], np.random.default_rng(0), params.attack.restarts
    t = rows.pivot(index=["classifier", "image"], columns="defence", values="t_broken")
    for (classifier, name), of in rows.groupby(["classifier", "defence"], sort=False):
        n, times = len(of), np.bincount(of.captured, minlength=max(restarts, 2) + 1)
        last = np.sort(of.t_clean)[int(params.rejection * n)]
        broken, own, noise = (of[key] >= last for key in ("t_broken", "t, own", "t, random noise"))
        once, twice = np.vstack([times, rng.multinomial(n, times / n, RESAMPLES)]).T[1:3]
        missed = np.where(twice > 0, once**2 / (2 * twice.clip(1)), once * (once - 1) / 2)
        models = [REFERENCE] * (name in FAMILIES[:-2]) + [FAMILIES[-2]] * name.startswith(SHIELD)
        left = {"one restart": 1 - of.captured.mean() / restarts, "restarts": times[0] / n, "all": 1 - broken.mean()}
        left["its models"] = 1 - (t.loc[classifier, models] > -math.inf).all(axis=1).mean()
        row = {"classifier": classifier, "defence": name} | {f"robust, {k}": share for k, share in left.items()}
        others, squared = (broken & ~own).sum(), of.squared.sum()
        row |= {"own": own.sum(), "Square alone": squared, "others alone": others, "noise": noise.sum()}
        row |= {"missed": missed[0], "missed, up to": np.quantile(missed, 0.975), "passes": of.forwards.mean(), "N": n}
        if "steps" in of:  # records of older code have none
            row |= {"steps": of.steps.max(), "robust, lost to the last doubling": of.doubling.mean()}
            row |= {name: of[name].sum() for name in SIGNS if name in of}
        rules = {"white box beats black box": squared, "one attack is enough": others > n / 200}
        made.append(row | {"violated": ", ".join(rule for rule, violated in rules.items() if violated)})
    return pd.DataFrame(made)


def alone(rows: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    """The share of images that each classifier's shield holds against each of `ALONE`."""
    held = rows[rows.defence == SHIELD].set_index("classifier")[[f"t, {attack}" for attack in ALONE]] < -tolerance
    return held.groupby(level=0, sort=False).mean().set_axis([f"robust, {a}" for a in ALONE], axis=1).reset_index()


def both_attackers(rows: pd.DataFrame) -> pd.DataFrame:
    """Each family's `robustness_curve`, where as many clean images are rejected as by the shield."""
    held, at = rows.groupby(["classifier", "defence"], sort=False).held, torch.arange(len(ALPHAS))
    curves = {key: robustness_curve(torch.tensor(of.tolist())[:, None] > at) for key, of in held}
    return pd.concat(curves, names=["classifier", "defence"]).reset_index([0, 1]).reset_index(drop=True)


def holm(p: pd.Series) -> pd.Series:
    """The p of several tests, corrected for their number (Holm 1979); NaN is no test."""
    order = p.dropna().sort_values()
    return (order * np.arange(len(order), 0, -1)).cummax().clip(upper=1.0).reindex(p.index)
