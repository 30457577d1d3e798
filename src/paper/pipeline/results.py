"""The result table on the terminal, compared with the committed one."""

import io
import subprocess
from pathlib import Path

import pandas as pd

from multishield.errors import UserError, reason_of
from paper import paths

KEYS, NUMBERS = ["classifier", "scenario", "metric"], dict.fromkeys(("value", "low", "high"), float)
REMEDY = "remove it and run `make reproduce`, which writes it anew"


def show() -> None:
    """Print the result table, the report's path, and a comparison with the committed table."""
    table = paths.reports("tables", "results.md")
    if not table.exists():
        raise UserError("there is no result table yet; run `make reproduce`")
    print(paths.text_of(table, REMEDY))
    print(f"The report: {paths.reports('index.html')}")
    values, metrics = _committed("params.yaml"), _committed("reports/tables/metrics.csv")
    if values is None or metrics is None:
        print("There is no committed table to compare it with.")
    elif values != paths.text_of(paths.root() / "params.yaml", "save it as UTF-8"):
        print("The committed table is of another params.yaml; nothing is compared.")
    else:
        ours = paths.reports("tables", "metrics.csv")
        print(compare(_metrics(paths.text_of(ours, REMEDY), ours), _metrics(metrics, f"the committed {ours}")))


def _metrics(text: str, source: Path | str) -> pd.DataFrame:
    """The table of metrics in a text. Raises UserError, which names its source, if it is another table or damaged."""
    try:
        return pd.read_csv(io.StringIO(text))[[*KEYS, *NUMBERS]].astype(NUMBERS)
    except (ValueError, KeyError) as error:
        raise UserError(f"{source} is no table of metrics ({reason_of(error)}); {REMEDY}") from None


def _committed(name: str) -> str | None:
    """A file of the last commit, or None: there is no repository, no commit, or no such file in it."""
    shown = subprocess.run(["git", "show", f"HEAD:./{name}"], cwd=paths.root(), capture_output=True)
    if b"safe.directory" in shown.stderr:
        given = f"git does not read {paths.root()}, because another user owns it"
        raise UserError(f"{given}; run `git config --global --add safe.directory {paths.root()}`")
    return shown.stdout.decode("utf-8", "replace") if shown.returncode == 0 else None


def compare(ours: pd.DataFrame, committed: pd.DataFrame) -> str:
    """The difference between `records.metrics` of two runs, in one sentence; a row of one side alone differs, too."""
    both = committed.merge(ours, on=KEYS, how="outer", suffixes=("_committed", ""))
    different = both[both.value != both.value_committed]
    if not len(different):
        return "This table and the committed one: the same."
    outside = different[~different.value.between(different.low_committed, different.high_committed)]
    counts = f"{len(different)} of {len(both)} figures differ, {len(outside)} of them beyond the committed intervals"
    return f"This table and the committed one: {counts}; `git diff reports/tables/results.md` shows them."
