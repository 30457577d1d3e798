"""Tables, as functions of the records' metrics: the same rows as Markdown, LaTeX and CSV."""

import html
from collections.abc import Callable

import pandas as pd

from multishield.records import METRICS, TITLES, cell

# No robust accuracy without clean accuracy and clean rejection beside it: a shield that rejects everything is "robust".
SHOWN = tuple(name for name in METRICS if not name.startswith("clip"))


def results(metrics: pd.DataFrame) -> pd.DataFrame:
    """The result table: a row per (classifier, scenario), ratios in per cent with 95 % Wilson intervals, and N."""
    place, table = {name: i for i, name in enumerate(TITLES)}, []
    for classifier, rows in metrics.groupby("classifier", sort=False):
        groups = rows.groupby("scenario", sort=False)
        for scenario, group in sorted(groups, key=lambda found: place.get(found[0], len(place))):
            by_name = group.set_index("metric")
            row = {"classifier": classifier, "scenario": TITLES.get(scenario, scenario)}
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


def broken_by(records: pd.DataFrame) -> pd.DataFrame:
    """What broke the images of each scenario, and the passes that an image cost, on average."""
    names = {"": "not broken", "clean": "wrong before any attack"}
    frame = records.assign(attack=records.attack.replace(names), scenario=records.scenario.map(TITLES))
    of = frame.groupby(["scenario", "attack"], sort=False)
    return of.agg(images=("image", "size"), forwards=("forwards", "mean"), backwards=("backwards", "mean")).round(0)


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


def linked(frame: pd.DataFrame, page_of: Callable[[dict], str], key: str | None = None, worst: str = "") -> str:
    """A table as HTML whose numbers, all from the third column on, are links to the page that made them.

    Args:
        page_of: a row, by its columns' names, to the page's address. key, worst: rows with this text there are set off.
    """
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in frame.columns)
    lines = []
    for row in frame.to_dict("records"):
        page, texts = html.escape(page_of(row)), [html.escape(str(value)) for value in row.values()]
        texts[2:] = [f'<a href="{page}">{text}</a>' if text else "" for text in texts[2:]]
        kind = ' class="worst"' if key and row[key] == worst else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td>{text}</td>" for text in texts) + "</tr>")
    rows = "\n".join(lines)
    return f'<table class="dataframe linked">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>'


def page_of_scenario(pages: dict[str, str]) -> Callable[[dict], str]:
    """For `linked`: the page of a row of `results`; pages: of stages, with {} for the classifier."""
    stages = {TITLES[name]: name for name in ("baseline", "multishield")}
    return lambda row: pages[stages.get(row["scenario"], "adaptive")].format(row["classifier"])


def headline(metrics: pd.DataFrame) -> dict:
    """For `dvc metrics show`, per classifier: what the shield costs on clean images, what is robust; fractions."""
    value = metrics.set_index(["classifier", "scenario", "metric"]).value.round(6).to_dict()
    shown = {f"clean_{kind}": ("adaptive", f"clean_{kind}") for kind in ("accuracy", "rejection")}
    robust = {"no_shield": "baseline", "unaware": "multishield", "paper": "paper", "worst_case": "adaptive"}
    shown |= {f"robust_{name}": (scenario, "robust_accuracy") for name, scenario in robust.items()}
    return {c: {name: value[c, *key] for name, key in shown.items()} for c in dict.fromkeys(metrics.classifier)}


def nested(metrics: pd.DataFrame) -> dict:
    """Classifier -> scenario -> metric -> fraction; and N."""
    found: dict = {}
    for row in metrics.itertuples():
        scenario = found.setdefault(row.classifier, {}).setdefault(row.scenario, {"n": int(row.n)})
        scenario[row.metric] = round(row.value, 6)
    return found


def findings(frame: pd.DataFrame) -> str:
    """The sanity rules' findings as an HTML table."""
    return to_html(frame.assign(holds=frame.holds.map({True: "holds", False: "VIOLATED"})), words=True)
