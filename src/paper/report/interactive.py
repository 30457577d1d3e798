"""The curves as data for `dvc plots show`: a row per point, in per cent, with a `panel` and a `curve`."""

from fractions import Fraction

import pandas as pd

from multishield.files import write_text
from paper import paths

NAMES = {"clean_accuracy": "clean", "pgd_accuracy": "PGD", "zero_shot_accuracy": "zero-shot"}


def write_curves(equal: pd.DataFrame, varied: pd.DataFrame, histories: dict[str, pd.DataFrame]) -> None:
    """Write rejection.csv, eps.csv, tolerance.csv and training.csv into the report's plots/.

    Args:
        equal: of `comparison.table`. varied: of `studies.table`. histories: training histories by name.
    """
    _write("rejection", _rejection(equal) if len(equal) else pd.DataFrame(columns=["panel", "curve"]))
    for study in ("eps", "tolerance"):
        _write(study, _study(varied, study))
    _write("training", _training(histories))


def _write(name: str, rows: pd.DataFrame) -> None:
    text = rows.to_csv(index=False, float_format="%.3f", lineterminator="\n")
    write_text(paths.artifacts("report", "plots", f"{name}.csv"), text)


def _rejection(equal: pd.DataFrame) -> pd.DataFrame:
    rows = equal.sort_values(["classifier", "defence", "rejection"], kind="stable")
    shares = {"clean rejection": rows.rejection, "robust accuracy": rows.robust}
    shares |= {"low": rows.robust_low, "high": rows.robust_high}
    return rows[["classifier", "defence"]].set_axis(["panel", "curve"], axis=1).assign(**_per_cent(shares), n=rows.n)


def _study(varied: pd.DataFrame, study: str) -> pd.DataFrame:
    rows = varied[(varied.study == study) & (varied.metric == "robust_accuracy")]
    shares = {"robust accuracy": rows.ratio, "low": rows.low, "high": rows.high}
    found = rows[["classifier", "of"]].set_axis(["panel", "curve"], axis=1)
    return found.assign(**{study: [_number(study, text) for text in rows.value]}, **_per_cent(shares), n=rows.n)


def _number(study: str, text: str) -> float:
    """A tolerance, or a radius in 255ths of the range of pixels."""
    return float(Fraction(text) * (255 if study == "eps" else 1))


def _training(histories: dict[str, pd.DataFrame]) -> pd.DataFrame:
    parts = [pd.DataFrame(columns=["panel", "curve", "epoch", "accuracy"])]
    for name, history in histories.items():
        for column in history.columns.intersection(list(NAMES)):
            points = {"panel": name, "curve": NAMES[column], "epoch": history.epoch, "accuracy": 100 * history[column]}
            parts.append(pd.DataFrame(points))
    return pd.concat([p for p in parts if len(p)] or parts, ignore_index=True)


def _per_cent(shares: dict[str, pd.Series]) -> dict[str, pd.Series]:
    return {name: 100 * share for name, share in shares.items()}
