"""The result table on the terminal, compared with the committed one."""

import io
import subprocess

import pandas as pd

from multishield.errors import UserError
from multishield.records import METRICS
from paper import paths
from paper.params import Params, parse_yaml


def show() -> None:
    """Print the result table, the report's path, and a comparison with the committed table."""
    table = paths.reports("tables", "results.md")
    if not table.exists():
        raise UserError("there is no result table yet; run `make reproduce`")
    print(table.read_text(encoding="utf-8"))
    print(f"The report: {paths.reports('index.html')}")
    values, metrics = _committed("params.yaml"), _committed("reports/tables/metrics.csv")
    if values is None or metrics is None:
        print("There is no committed table to compare it with.")
    elif Params.parse(parse_yaml(values, "the committed params.yaml"), "the committed params.yaml") != Params.load():
        print("The committed table is of other parameters; nothing is compared.")
    else:
        print(compare(pd.read_csv(paths.reports("tables", "metrics.csv")), pd.read_csv(io.StringIO(metrics))))


def _committed(name: str) -> str | None:
    """A file of the last commit, or None: there is no git, no repository, no commit, or no such file in it."""
    try:
        shown = subprocess.run(["git", "show", f"HEAD:./{name}"], cwd=paths.root(), capture_output=True)
    except FileNotFoundError:
        return None
    return shown.stdout.decode("utf-8") if shown.returncode == 0 else None


def compare(ours: pd.DataFrame, committed: pd.DataFrame) -> str:
    """The difference between the metrics of two runs of the same parameters, in one sentence.

    Args:
        ours, committed: rows (classifier, scenario, metric, value, low, high, n), as `records.metrics` makes them. A
            value outside the committed low..high (95 % Wilson) is named.
    """
    keys = ["classifier", "scenario", "metric"]
    both = committed.merge(ours, on=keys, how="outer", suffixes=("_committed", ""), indicator="side")
    alone = both[both.side != "both"]
    if len(alone):
        rows = sorted({f"{row.classifier}, {row.scenario}" for row in alone.itertuples()})
        return f"This table and the committed one have not the same rows: only one of them has {'; '.join(rows)}."
    different = both[both.value != both.value_committed]
    if not len(different):
        return "This table and the committed one: the same."
    counted = f"This table and the committed one: {len(different)} of {len(both)} figures differ"
    outside = different[~different.value.between(different.low_committed, different.high_committed)]
    if not len(outside):
        return f"{counted}, all of them within the committed intervals."
    named = [
        f"{row.classifier}, {row.scenario}, {METRICS[row.metric][0]} {100 * row.value:.1f} (committed "
        f"{100 * row.value_committed:.1f} [{100 * row.low_committed:.1f}, {100 * row.high_committed:.1f}])"
        for row in outside.itertuples()
    ]
    return f"{counted}, and outside the committed intervals lie: {'; '.join(named)}"
