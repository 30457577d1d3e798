"""Tables of the report: for readers, as HTML with links, and for `dvc metrics`."""

import html

import numpy as np
import pandas as pd

from multishield.records import METRICS, TITLES, Share, cell, to_html
from paper.naming import run_name
from paper.params import Params
from paper.stages.comparison import REFERENCE

FOLDED = "<details><summary>{}</summary>\n{}</details>"  # HTML behind a title that opens it
WEAK = 0.05  # less than this share of robust images is not compared
# Bound of a smoothed model (`multishield.certified_curve`) -> its name.
BOUNDS = {"right": "certified, right", "held": "certified, not broken", "attacked": "not broken by the attack"}


def names_of(params: Params) -> dict[str, str]:
    """Classifier -> its name for readers. One that is called "robust", as a metric is, gets another name."""
    adversarial = getattr(params.training.get("robust"), "method", "") in ("fgsm", "pgd", "trades")
    others = {"robust": "adversarially trained" if adversarial else "“robust”"}
    return {name: others.get(name, name) for name in params.classifiers}


def named(frame: pd.DataFrame, params: Params) -> pd.DataFrame:
    """The frame with the classifiers' names for readers, also in names such as "robust with the shield"."""
    names, ends = names_of(params).items(), ("", " with the shield")
    return frame.replace({"classifier": {name + end: shown + end for name, shown in names for end in ends}})


def summary(metrics: pd.DataFrame, table: pd.DataFrame, margins: pd.DataFrame) -> pd.DataFrame:
    """The first table, in per cent: each classifier alone, with the shield, with a threshold that rejects as often.

    A classifier with hardly a robust image has the shield's row alone. `table` and `margins` are the comparison's.
    """
    value, rows = metrics.set_index(["classifier", "metric", "scenario"]).value, []
    for own in table[table.defence == REFERENCE].itertuples():
        of_name = value[own.classifier]
        robust, clean, rejected = of_name.robust_accuracy, of_name.clean_accuracy, of_name.clean_rejection
        of = margins[(margins.classifier == own.classifier) & (margins.defence == REFERENCE)]
        unaware = (of["t, no_shield"] < np.sort(of.t_clean)[round(own.rejection * own.n)]).mean()
        alone = ", alone", 0, clean.no_shield, robust.no_shield, robust.no_shield
        shield = " + shield", rejected.worst_case, clean.worst_case, robust.unaware, robust.worst_case
        threshold = " + threshold, no CLIP", own.rejection, own.clean, unaware, own.robust
        for end, *shares in (alone, shield, threshold) if robust.no_shield >= WEAK else (shield,):
            rows.append((own.classifier + end, *(f"{100 * share:.1f}" for share in shares)))
    columns = ["clean images rejected", "clean accuracy", "robust, unaware attacker", "robust, knowing attacker"]
    return pd.DataFrame(rows, columns=["models", *columns])


def comparison(table: pd.DataFrame) -> pd.DataFrame:
    """The defences at equal clean rejection (`stages.comparison.table`) in per cent, with 95 % bootstrap intervals."""
    shown = table[["classifier", "defence"]].copy()
    for key, title in {"mean": "mean robust accuracy", "difference": "difference from the logit margin"}.items():
        shown[title] = [with_interval(row, key) for row in table.itertuples()]
    shown["p"] = table.p.map(p_value) + table.primary.map({True: " (primary)", False: ""})
    for key in ("rejection", "robust", "clean"):
        shown[f"{key}, at the shield's tolerance"] = (100 * table[key]).map("{:.1f}".format)
    shown["clean rejection where 5 % was wanted"] = [with_interval(row, "refused") for row in table.itertuples()]
    return shown.assign(N=table.n)


def with_interval(row, key: str) -> str:
    """The fraction of that key with its interval, in per cent: `85.2 [78.0, 90.3]`."""
    return cell(Share(getattr(row, key), getattr(row, f"{key}_low"), getattr(row, f"{key}_high")))


def per_cent(table: pd.DataFrame, word: str) -> pd.DataFrame:
    """The columns whose names hold a word in per cent, and all numbers with one decimal."""
    return table.assign(**{name: 100 * table[name] for name in table if word in name}).round(1)


def studies(table: pd.DataFrame) -> pd.DataFrame:
    """The studies (`stages.studies.table`): a row per value, in per cent with 95 % Wilson intervals."""
    metrics = ("clean_accuracy", "clean_rejection", "robust_accuracy", "rejection_under_attack")
    similarity = table.similarity.map(lambda cosine: "" if pd.isna(cosine) else f"{cosine:.3f}")
    shown, keys = table.assign(similarity=similarity), ["study", "classifier", "value", "of", "similarity"]
    shown = _by_key(shown, keys, "metric", {name: METRICS[name][0] for name in metrics})
    return shown.rename(columns={"similarity": "prompt similarity"})


def bounds(table: pd.DataFrame) -> pd.DataFrame:
    """The bracket of smoothed models (`stages.studies.bounds`): a row per radius, in per cent with Wilson intervals."""
    shown, keys = table.assign(radius=table.radius.map("{:.3f}".format)), ["study", "classifier", "value", "radius"]
    return _by_key(shown, keys, "bound", BOUNDS).rename(columns={"classifier": "model", "value": "sigma"})


def _by_key(table: pd.DataFrame, keys: list[str], column: str, titles: dict[str, str]) -> pd.DataFrame:
    """A row per combination of keys, with a ratio's cell for each of the `titles`, by the values of a column."""
    rows = []
    for key, group in table.groupby(keys, sort=False):
        ratios = group.set_index(column)[["ratio", "low", "high"]].set_axis(["value", "low", "high"], axis=1)
        cells = {title: cell(ratios.loc[name]) for name, title in titles.items()}
        rows.append(dict(zip(keys, key, strict=True)) | cells | {"N": int(group.n.iloc[0])})
    return pd.DataFrame(rows)


def p_value(p: float) -> str:
    """The p of a test, `0.023` or `< 0.001`; empty for NaN (there was no test)."""
    return "" if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def findings(frame: pd.DataFrame) -> str:
    """The findings of the sanity rules, as HTML."""
    return to_html(frame.assign(holds=frame.holds.map({True: "holds", False: "VIOLATED"})), words=True)


def linked(frame: pd.DataFrame, stage: str | None = None, names: dict[str, str] | None = None) -> str:
    """A table as HTML. The second cells link to the pages of the notebooks that made the rows, to each page once.

    The first column has the item of the stage's notebook, `names` are for readers. Without a stage the table is
    `records.results`, whose scenarios come from three stages; worst cases are bold.
    """
    stages = {TITLES["no_shield"]: "baseline", TITLES["unaware"]: "multishield"}
    shown, last = frame.replace({frame.columns[0]: names or {}}).astype(str).map(html.escape), None
    for i, (item, second) in enumerate(zip(frame.iloc[:, 0], frame.iloc[:, 1], strict=True)):
        page, text = run_name(stage or stages.get(second, "adaptive"), item), shown.iloc[i, 1]
        text = f"<b>{text}</b>" if second == TITLES["worst_case"] else text
        shown.iloc[i, 1], last = text if page == last else f'<a href="{html.escape(page)}.html">{text}</a>', page
    return shown.to_html(index=False, border=0, escape=False, classes="linked")


def headline(metrics: pd.DataFrame, studied: pd.DataFrame) -> dict:
    """For `dvc metrics show`, as fractions: the shield's results, and the range of its robust accuracy by study."""
    robust = studied.query("of == 'shield' and metric == 'robust_accuracy'")
    ranges = robust.groupby(["classifier", "study"], sort=False).ratio.agg(np.ptp).round(6)
    return {
        name: {f"clean_{kind}": by["worst_case"][f"clean_{kind}"] for kind in ("accuracy", "rejection")}
        | {f"robust_{s}": by[s]["robust_accuracy"] for s in ("no_shield", "unaware", "paper", "worst_case")}
        | {f"range_{study}": share for study, share in ranges[name].items()}
        for name, by in nested(metrics).items()
    }


def nested(metrics: pd.DataFrame) -> dict:
    """The metrics as fractions: classifier -> scenario -> metric, and N as "n"."""
    tree: dict = {}
    for (name, scenario), of in metrics.round({"value": 6}).groupby(["classifier", "scenario"], sort=False):
        values = dict(zip(of.metric, of.value.tolist(), strict=True))
        tree.setdefault(name, {})[scenario] = {"n": int(of.n.iloc[0])} | values
    return tree
