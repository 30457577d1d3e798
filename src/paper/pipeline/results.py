"""The result table on the terminal, and how it stands to the committed one: the promise of reproduction, looked at."""

import io
import subprocess

import pandas as pd

from multishield.errors import UserError
from multishield.records import METRICS
from paper import paths
from paper.params import Params, parse_yaml


def show() -> None:
    """Print the result table, where the report is, and in one sentence how the table stands to the committed one.

    Raises:
        UserError: there is no table yet.
    """
    table = paths.reports("tables", "results.md")
    if not table.exists():
        raise UserError("there is no result table yet; run `make reproduce`")
    print(table.read_text(encoding="utf-8"))
    print(f"The report: {paths.reports('index.html')}")
    print(_beside_committed())


def _committed(name: str) -> str | None:
    """A file of the last commit, or None: there is no repository, no commit, or no such file in it."""
    try:
        shown = subprocess.run(["git", "show", f"HEAD:./{name}"], cwd=paths.root(), capture_output=True)
    except FileNotFoundError:  # git itself is missing
        return None
    return shown.stdout.decode("utf-8") if shown.returncode == 0 else None


def _beside_committed() -> str:
    values, metrics = _committed("params.yaml"), _committed("reports/tables/metrics.csv")
    if values is None or metrics is None:
        return "There is no committed table to compare it with."
    name = "the committed params.yaml"
    if Params.parse(parse_yaml(values, name), name) != Params.load():
        return "The committed table is of other parameters; nothing is compared."
    return compare(pd.read_csv(paths.reports("tables", "metrics.csv")), pd.read_csv(io.StringIO(metrics)))


def compare(ours: pd.DataFrame, committed: pd.DataFrame) -> str:
    """How one run's metrics stand to another's of the same parameters, in one sentence.

    Args:
        ours, committed: rows (classifier, scenario, metric, value, low, high, n), as `records.metrics` makes them. A
            value outside the committed low..high (95 % Wilson) is named.
    """
    keys = ["classifier", "scenario", "metric"]
    both = committed.merge(ours, on=keys, how="outer", suffixes=("_committed", ""), indicator="where")
    alone = both[both["where"] != "both"]
    if len(alone):
        rows = sorted({f"{row.classifier}, {row.scenario}" for row in alone.itertuples()})
        return f"This table and the committed one have not the same rows: in one of them alone are {'; '.join(rows)}."
    different = both[both.value != both.value_committed]
    if not len(different):
        return "This table and the committed one: the same."
    outside = different[~different.value.between(different.low_committed, different.high_committed)]
    if not len(outside):
        return (
            f"This table and the committed one: {len(different)} of {len(both)} figures differ, all of them within the "
            "committed intervals."
        )
    named = [
        f"{row.classifier}, {row.scenario}, {METRICS[row.metric][0]} {100 * row.value:.1f} (committed "
        f"{100 * row.value_committed:.1f} [{100 * row.low_committed:.1f}, {100 * row.high_committed:.1f}])"
        for row in outside.itertuples()
    ]
    return (
        f"This table and the committed one: {len(different)} of {len(both)} figures differ, and outside the committed "
        "intervals lie: " + "; ".join(named)
    )
