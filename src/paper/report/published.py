"""The quantities of the paper's claims; and published figures, judged in their own setting alone."""

import pandas as pd

from multishield.files import read_json
from multishield.records import TITLES, cell
from paper import paths
from paper.models import model_zoo
from paper.models.model_zoo import Entry
from paper.params import Params
from paper.params.values import AA_STANDARD

COLUMNS = ["classifier", "entry", "figure", "published", "measured", "N", "verdict", "notes"]


def improvements(metrics: pd.DataFrame) -> pd.DataFrame:
    """The quantities of the paper's claims (docs/claims.md), a row per classifier: in points, what the shield adds."""
    value, rows = 100 * metrics.set_index(["classifier", "metric", "scenario"]).value, []
    for name in metrics.classifier.unique():
        robust, clean = value[name].robust_accuracy, value[name].clean_accuracy
        row = {"classifier": name, "robust accuracy without the shield": f"{robust.no_shield:.1f} %"}
        for scenario in ("unaware", "paper", "worst_case"):
            row[f"gain, {TITLES[scenario]}"] = f"{robust[scenario] - robust.no_shield:+.1f}"
        rows.append(row | {"clean accuracy": f"{clean.unaware - clean.no_shield:+.1f}"})
    return pd.DataFrame(rows)


def differences(entry: Entry, params: Params) -> tuple[list[str], list[str]]:
    """The differences of a run from the entry's setting: of the images, and of the attack."""
    data, attacks, (size, resize, interpolation) = params.dataset, params.baseline.attacks, entry.preprocessing
    side, ours = data.resize or data.image_size, "standard" if set(attacks) == set(AA_STANDARD) else attacks
    images = {"data set": (entry.dataset if data.own else data.name, entry.dataset)}
    images |= {"image size": (data.image_size, size), "shorter side before the crop": (side, resize or side)}
    images |= {"interpolation": (data.interpolation, interpolation if resize else data.interpolation)}
    radii = (f"{model.norm} {model.eps * 255:g}/255" for model in (params.threat_model, entry))
    attack = {"threat model": tuple(radii), "AutoAttack": (ours if ours == "standard" else ", ".join(ours), "standard")}
    notes = (images.items(), attack.items())
    return tuple([f"{key} {own} instead of {other}" for key, (own, other) in of if own != other] for of in notes)


def compare(params: Params, metrics: pd.DataFrame) -> pd.DataFrame:
    """A row per published figure of this run's classifiers: `COLUMNS`, in per cent; no row where none is published.

    The verdict is "agrees" or "differs" (the published value lies outside the measured interval), or "no comparison"
    where the notes name a difference of setting. Metrics: see `records.metrics`.
    """
    alone, rows = metrics[metrics.scenario == "no_shield"].set_index(["classifier", "metric"]), []
    for name in params.classifiers:
        made_by = read_json(paths.artifacts("training", name, "classifier.json"))["architecture"]
        if made_by["source"] != "model_zoo":
            continue
        entry = model_zoo.find(f"training.{name}.name", made_by["name"])
        images, attack = differences(entry, params)
        doubts = [f"images of one's own, taken to be test images of {entry.dataset}"] * params.dataset.own
        clean = ("clean accuracy", entry.clean, alone.loc[name, "clean_accuracy"], images)
        robust = ("AutoAttack accuracy", entry.autoattack, alone.loc[name, "robust_accuracy"], images + attack)
        for figure, published, measured, notes in (clean, robust):
            agrees = 100 * measured.low <= published <= 100 * measured.high
            verdict = "no comparison" if notes else "agrees" if agrees else "differs"
            cells = (f"{published:.2f}", cell(measured), int(measured.n), verdict, "; ".join(notes + doubts))
            rows.append((name, entry.name, figure, *cells))
    return pd.DataFrame(rows, columns=COLUMNS)
