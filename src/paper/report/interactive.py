"""The curves as data for `dvc plots show`: a row per point, in per cent, with a `panel` and a `curve`."""

from fractions import Fraction

import pandas as pd

from multishield.files import write_text
from paper import paths

CURVES = {"clean_accuracy": "clean", "pgd_accuracy": "PGD", "zero_shot_accuracy": "zero-shot"}


def write_curves(compared: pd.DataFrame, varied: pd.DataFrame, histories: dict[str, pd.DataFrame]) -> None:
    """Write rejection.csv, eps.csv, tolerance.csv and training.csv into the report's plots/.

    Args:
        compared: of `comparison.table`. varied: of `studies.table`. histories: training histories by name.
    """
    _write("rejection", _rejection(compared))
    _write("eps", _study(varied, "eps", unit=255))
    _write("tolerance", _study(varied, "tolerance"))
    _write("training", _training(histories))


def _write(name: str, points: pd.DataFrame) -> None:
    text = points.to_csv(index=False, float_format="%.3f", lineterminator="\n")
    write_text(paths.artifacts("report", "plots", f"{name}.csv"), text)


def _rejection(compared: pd.DataFrame) -> pd.DataFrame:
    if not len(compared):
        return pd.DataFrame(columns=["panel", "curve"])
    rows = compared.sort_values(["classifier", "defence", "rejection"], kind="stable")
    rows = rows.rename(columns={"robust": "ratio", "robust_low": "low", "robust_high": "high"})
    return _points(rows, "defence", "clean rejection", 100 * rows.rejection)


def _study(varied: pd.DataFrame, study: str, unit: int = 1) -> pd.DataFrame:
    """Robust accuracy by the values of a study, which are multiples of 1/unit."""
    rows = varied[(varied.study == study) & (varied.metric == "robust_accuracy")]
    return _points(rows, "of", study, [float(unit * Fraction(value)) for value in rows.value])


def _points(rows: pd.DataFrame, curve: str, name: str, x) -> pd.DataFrame:
    """Points (x, robust accuracy) with their intervals; `curve` is the column that names the curve."""
    shares = {"robust accuracy": 100 * rows.ratio, "low": 100 * rows.low, "high": 100 * rows.high}
    return pd.DataFrame({"panel": rows.classifier, "curve": rows[curve], name: x, **shares, "n": rows.n})


def _training(histories: dict[str, pd.DataFrame]) -> pd.DataFrame:
    points = [
        (name, CURVES[column], epoch, 100 * accuracy)
        for name, history in histories.items()
        for column in history.columns.intersection(list(CURVES))
        for epoch, accuracy in zip(history.epoch, history[column], strict=True)
    ]
    return pd.DataFrame(points, columns=["panel", "curve", "epoch", "accuracy"])
