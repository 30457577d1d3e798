"""The result table on the terminal, compared with the committed one."""

import io
import subprocess

import pandas as pd

from multishield.errors import UserError
from paper import paths


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
    elif values != (paths.root() / "params.yaml").read_text(encoding="utf-8"):
        print("The committed table is of another params.yaml; nothing is compared.")
    else:
        print(compare(pd.read_csv(paths.reports("tables", "metrics.csv")), pd.read_csv(io.StringIO(metrics))))


def _committed(name: str) -> str | None:
    """A file of the last commit, or None: there is no repository, no commit, or no such file in it."""
    shown = subprocess.run(["git", "show", f"HEAD:./{name}"], cwd=paths.root(), capture_output=True)
    return shown.stdout.decode("utf-8") if shown.returncode == 0 else None


def compare(ours: pd.DataFrame, committed: pd.DataFrame) -> str:
    """The difference between the metrics of two runs of the same parameters, in one sentence.

    Both frames are of `records.metrics`. A row of one side alone differs, too.
    """
    both = committed.merge(ours, on=["classifier", "scenario", "metric"], how="outer", suffixes=("_committed", ""))
    different = both[both.value != both.value_committed]
    if not len(different):
        return "This table and the committed one: the same."
    outside = different[~different.value.between(different.low_committed, different.high_committed)]
    return (
        f"This table and the committed one: {len(different)} of {len(both)} figures differ, {len(outside)} of them "
        "beyond the committed intervals; `git diff reports/tables/results.md` shows them."
    )
