"""Tables, as functions of the records' metrics: the same rows as Markdown, LaTeX and CSV."""

import pandas as pd

from multishield.evaluation.records import METRICS, SCENARIOS, cell

# No robust accuracy without clean accuracy and clean rejection beside it: a shield that rejects everything is "robust".
SHOWN = tuple(name for name in METRICS if not name.startswith("clip"))


def results(metrics: pd.DataFrame) -> pd.DataFrame:
    """The result table: a row per (classifier, scenario), ratios in per cent with 95 % Wilson intervals, and N."""
    place, table = {name: i for i, name in enumerate(SCENARIOS)}, []
    for classifier, rows in metrics.groupby("classifier", sort=False):
        groups = rows.groupby("scenario", sort=False)
        for scenario, group in sorted(groups, key=lambda found: place.get(found[0], len(place))):
            by_name = group.set_index("metric")
            row = {"classifier": classifier, "scenario": scenario}
            row |= {METRICS[name][0]: cell(by_name.loc[name]) for name in SHOWN}
            table.append(row | {"N": int(group.n.iloc[0])})
    return pd.DataFrame(table)


def to_markdown(frame: pd.DataFrame) -> str:
    """A Markdown table, first two columns to the left, numbers to the right."""
    head, *body = ("| " + " | ".join(map(str, row)) + " |\n" for row in (frame.columns, *frame.itertuples(index=False)))
    return head + "|---|---|" + "---:|" * (len(frame.columns) - 2) + "\n" + "".join(body)


def to_latex(frame: pd.DataFrame) -> str:
    """A booktabs table, first two columns to the left, numbers to the right."""
    return frame.to_latex(index=False, escape=True, column_format="ll" + "r" * (len(frame.columns) - 2))


def to_html(frame: pd.DataFrame, words: bool = False) -> str:
    """An HTML table; one of words is set to the left and wraps, one of numbers is set to the right."""
    return frame.to_html(index=False, border=0, classes="words" if words else None)


def nested(metrics: pd.DataFrame) -> dict:
    """For `dvc metrics show`: classifier -> scenario -> metric -> fraction; and N."""
    found: dict = {}
    for row in metrics.itertuples():
        scenario = found.setdefault(row.classifier, {}).setdefault(row.scenario, {"n": int(row.n)})
        scenario[row.metric] = round(row.value, 6)
    return found


def findings(frame: pd.DataFrame) -> str:
    """The sanity rules' findings as an HTML table."""
    return to_html(frame.assign(holds=frame.holds.map({True: "holds", False: "VIOLATED"})), words=True)
