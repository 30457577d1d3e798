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


def _entry(name: str, params: Params) -> Entry | None:
    """The entry of the model zoo, or the paper's of a network that it fine-tunes; None if there is none."""
    made_by = read_json(paths.artifacts("training", name, "classifier.json"))["architecture"]
    if made_by["source"] == "model_zoo":
        return model_zoo.find(f"training.{name}.name", made_by["name"])
    return model_zoo.FINETUNED.get((made_by["model"], params.dataset.name)) if made_by["source"] == "finetune" else None


def differences(entry: Entry, params: Params) -> tuple[list[str], list[str], list[str]]:
    """The differences from the entry's setting: of the images, of the attack, and those whose effect nobody knows."""
    data, attacks, own = params.dataset, params.baseline.attacks, params.dataset.own
    size, resize, interpolation = entry.preprocessing
    side = data.resize or data.image_size
    ours, published = (f"{model.norm} {model.eps * 255:g}/255" for model in (params.threat_model, entry))
    images = {
        f"data set {data.name} instead of {entry.dataset}": not own and data.name != entry.dataset,
        f"images of {data.image_size} pixels instead of {size}": data.image_size != size,
        f"shorter side {side} instead of {resize} before the crop": data.image_size == size
        and side != (resize or side),
        f"{data.interpolation} instead of {interpolation} resizing": resize and data.interpolation != interpolation,
    }
    custom = attacks != "standard" and set(attacks) != set(AA_STANDARD)
    attack = {f"threat model {ours} instead of {published}": ours != published}
    attack |= {f"{', '.join(attacks)} instead of standard AutoAttack": custom}
    uneven = not own and data.name in model_zoo.UNBALANCED and data.order == "stratified"
    doubts = {
        f"images of one's own, taken to be test images of {entry.dataset}": own,
        "equally many images of each class, though the classes differ in size": uneven,
    }
    return tuple([note for note, holds in notes.items() if holds] for notes in (images, attack, doubts))


def compare(params: Params, metrics: pd.DataFrame) -> pd.DataFrame:
    """A row per published figure of this run's classifiers: `COLUMNS`, in per cent; no row where none is published.

    The verdict is "agrees" or "differs" (the published value lies outside the measured interval), or "no comparison"
    where the notes name a difference of setting. Metrics: see `records.metrics`.
    """
    alone, rows = metrics[metrics.scenario == "no_shield"].set_index(["classifier", "metric"]), []
    entries = {name: entry for name in params.classifiers if (entry := _entry(name, params))}
    for name, entry in entries.items():
        images, attack, doubts = differences(entry, params)
        clean = ("clean accuracy", entry.clean, alone.loc[name, "clean_accuracy"], images)
        robust = ("AutoAttack accuracy", entry.autoattack, alone.loc[name, "robust_accuracy"], images + attack)
        for figure, published, measured, notes in (clean, robust):
            if published is not None:
                inside = 100 * measured.low <= published <= 100 * measured.high
                verdict = "no comparison" if notes else "agrees" if inside else "differs"
                cells = (f"{published:.2f}", cell(measured), int(measured.n), verdict, "; ".join(notes + doubts))
                rows.append((name, entry.name, figure, *cells))
    return pd.DataFrame(rows, columns=COLUMNS)
