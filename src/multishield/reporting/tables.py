"""Tables, as functions of the records' metrics: the same rows as Markdown, LaTeX and CSV."""

import re

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


def comparison(table: pd.DataFrame) -> pd.DataFrame:
    """The defences at equal clean rejection (`evaluation.comparison.table`) in per cent with 95 % Wilson intervals."""
    shares = {"rejection": "clean_rejection", "clean": "clean_accuracy"}
    shares |= {"robust": "robust_accuracy", "correct": "correct_under_attack"}
    rows = []
    for row in table.to_dict("records"):
        wanted = f"{100 * row['wanted']:.1f}" + (" (the shield's own)" if row["own"] else "")
        cells = {"classifier": row["classifier"], "defence": row["defence"], "wanted rejection": wanted}
        for share, metric in shares.items():
            value, low, high = (row[name] for name in (share, f"{share}_low", f"{share}_high"))
            cells[METRICS[metric][0]] = cell(pd.Series({"value": value, "low": low, "high": high}))
        rows.append(cells | {"gained": row["gained"], "lost": row["lost"], "p": p_value(row["p"]), "N": row["n"]})
    return pd.DataFrame(rows)


def studies(table: pd.DataFrame) -> pd.DataFrame:
    """The studies (`evaluation.studies.table`): a row per value, in per cent with 95 % Wilson intervals."""
    shown = ("clean_accuracy", "clean_rejection", "robust_accuracy", "rejection_under_attack")
    rows = []
    keys = ["study", "classifier", "value", "of"]
    for key, group in table.groupby(keys, sort=False):
        by_name = group.rename(columns={"value": "at", "ratio": "value"}).set_index("metric")
        row = dict(zip(keys, key, strict=True)) | {METRICS[name][0]: cell(by_name.loc[name]) for name in shown}
        similarity = group.similarity.iloc[0]
        row["prompt similarity"] = "" if pd.isna(similarity) else f"{similarity:.3f}"
        rows.append(row | {"N": int(group.n.iloc[0])})
    return pd.DataFrame(rows)


def p_value(p: float) -> str:
    """A test's p, `0.023` or `< 0.001`; empty where nothing was tested (NaN)."""
    return "" if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


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


def results_html(frame: pd.DataFrame) -> str:
    """The result table as HTML, the worst case's rows set off."""
    return re.sub(r"<tr>(\s*<td>[^<]*</td>\s*<td>adaptive</td>)", r'<tr class="worst">\1', to_html(frame))


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
