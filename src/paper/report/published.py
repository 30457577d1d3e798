"""Published figures beside measured ones, for classifiers of the catalogue.

A published value that lies outside the measured 95 % interval is flagged, but only where it was measured in the same
setting: what differs is said instead.
"""

import pandas as pd

from multishield.files import read_json
from multishield.records import cell
from paper import paths
from paper.models import model_zoo
from paper.models.model_zoo import Entry, own_images
from paper.params import Params
from paper.params.values import AA_STANDARD

COLUMNS = ("classifier", "entry", "figure", "published", "measured", "N", "verdict", "notes")
# Figure -> the metric of the baseline scenario that measures it.
FIGURES = {"clean accuracy": "clean_accuracy", "AutoAttack accuracy": "robust_accuracy"}


def entries(params: Params) -> dict[str, Entry]:
    """The catalogue's entries of the classifiers that have one, and the paper's of those that it fine-tunes too."""
    found = {}
    for name in params.classifiers:
        made = read_json(paths.artifacts("training", name, "classifier.json"))["architecture"]
        if made["source"] == "catalogue":
            found[name] = model_zoo.find(f"training.{name}.name", made["name"])
        if made["source"] == "finetune":
            found[name] = model_zoo.FINETUNED.get((made["model"], params.dataset.name))
    return {name: entry for name, entry in found.items() if entry}


def differences(entry: Entry, params: Params) -> dict[str, list[str]]:
    """What differs from the setting of the published figures, per figure."""
    data, threat, attacks = params.dataset, params.threat_model, params.baseline.attacks
    size, resize, interpolation = entry.preprocessing
    clean = []
    if not own_images(data.name) and data.name != entry.dataset:
        clean.append(f"data set {data.name} instead of {entry.dataset}")
    if data.image_size != size:
        clean.append(f"images of {data.image_size} pixels instead of {size}")
    elif resize and (data.resize or data.image_size) != resize:
        clean.append(f"shorter side {data.resize or data.image_size} instead of {resize} before the crop")
    if resize and data.interpolation != interpolation:
        clean.append(f"{data.interpolation} instead of {interpolation} resizing")
    attacked = []
    if (threat.norm, round(threat.eps * 255, 6)) != (entry.norm, round(entry.eps * 255, 6)):
        given, published = (f"{n} {e * 255:g}/255" for n, e in ((threat.norm, threat.eps), (entry.norm, entry.eps)))
        attacked.append(f"threat model {given} instead of {published}")
    if attacks != "standard" and set(attacks) != set(AA_STANDARD):
        attacked.append(f"{', '.join(attacks)} instead of standard AutoAttack")
    return {"clean accuracy": clean, "AutoAttack accuracy": clean + attacked}


def compare(params: Params, metrics: pd.DataFrame) -> pd.DataFrame:
    """A row per catalogued classifier and figure: published and measured, in per cent, and what follows.

    Args:
        metrics: as `records.metrics` returns them.

    Returns:
        The columns of `COLUMNS`, no row without such classifiers. The verdict is "agrees" or "differs" (published
        outside the measured 95 % Wilson interval), or "no comparison" where the notes name a difference of setting.
    """
    baseline = metrics[metrics.scenario == "baseline"].set_index(["classifier", "metric"])
    rows = []
    for name, entry in entries(params).items():
        notes = differences(entry, params)
        for figure, value in (("clean accuracy", entry.clean), ("AutoAttack accuracy", entry.autoattack)):
            if value is not None:
                measured = baseline.loc[name, FIGURES[figure]]
                inside = 100 * measured.low <= value <= 100 * measured.high
                verdict = "no comparison" if notes[figure] else "agrees" if inside else "differs"
                words = "; ".join(notes[figure] + _unknown(entry, params))
                cells = (f"{value:.2f}", cell(measured), int(measured.n), verdict, words)
                rows.append((name, entry.name, figure, *cells))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _unknown(entry: Entry, params: Params) -> list[str]:
    """What may make a difference, but nobody knows how much."""
    if own_images(params.dataset.name):
        return [f"images of one's own, taken to be test images of {entry.dataset}"]
    if params.dataset.name in model_zoo.UNBALANCED and params.dataset.order == "stratified":
        return ["equally many images of each class, though the classes differ in size"]
    return []
