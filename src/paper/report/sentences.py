"""Sentences of the notebooks and the report, as Markdown; the records fill in their numbers."""

import pandas as pd

from multishield import records
from paper.params import Params
from paper.report.tables import WEAK, p_value, with_interval
from paper.stages import comparison


def _share(metrics: pd.DataFrame, scenario: str, metric: str = "robust_accuracy") -> str:
    return f"{100 * metrics.set_index(['scenario', 'metric']).value[scenario, metric]:.1f} %"


def baseline(name: str, metrics: pd.DataFrame) -> str:
    """The result of scenario 1."""
    clean, robust = _share(metrics, "no_shield", "clean_accuracy"), _share(metrics, "no_shield")
    return f"**{name}** classifies {clean} of {metrics.n.iloc[0]} images correctly, and {robust} under AutoAttack."


def unaware(metrics: pd.DataFrame) -> str:
    """The result of scenario 2."""
    robust, rejection = _share(metrics, "unaware"), _share(metrics, "unaware", "clean_rejection")
    return f"The shield stops an unaware attacker on {robust} of the images, and rejects {rejection} of the clean ones."


def adaptive(metrics: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The result of scenario 3, from its records, too: they name attacks from elsewhere that have lowered it."""
    paper, joint, worst = (_share(metrics, scenario) for scenario in ("paper", "joint", "worst_case"))
    robust = f"{paper} are robust under the paper's attack, {joint} under the joint attack, and **{worst}**"
    others = rows.attack[(rows.scenario == "worst_case") & rows.attack.str.startswith("from ")].value_counts()
    words = (f" Images {name} break {count} that our attacks left." for name, count in others.items())
    return f"Against attackers who know the shield {robust} under all attacks together.{''.join(words)}"


def failures(rows: pd.DataFrame) -> str:
    """How the shield lost images, from the records of scenario 3: who had to be moved to the wrong class."""
    lost = rows[(rows.scenario == "worst_case") & records.broken(rows)]
    before = (lost.clean_decision != lost.label) & ~records.rejected(lost, "clean")
    one = ~before & (lost.clean_clip == lost.attacked_decision)
    text = f"Of the {len(lost)} images that the shield loses, {before.sum()} were accepted as a wrong class before any "
    text += (
        f"attack. On {one.sum()} CLIP preferred the wrong class already, so that only the classifier had to be moved. "
    )
    return text + f"On {len(lost) - before.sum() - one.sum()} both models were moved to it."


def finding(metrics: pd.DataFrame, rows: pd.DataFrame, names: dict[str, str]) -> str:
    """The results of the three scenarios for each classifier, from the metrics and the records."""
    groups, by_name = metrics.groupby("classifier", sort=False), dict(list(rows.groupby("classifier")))
    lines = (f"- {baseline(names[name], m)} {unaware(m)} {adaptive(m, by_name[name])}" for name, m in groups)
    return "\n".join(lines)


def data(params: Params, count: int) -> str:
    """The images and the threat model of this run, and what it is worth as evidence."""
    threat, shapes = params.threat_model, params.dataset.name == "shapes"
    radius = f"{threat.eps:g}" if threat.norm == "L2" else f"{threat.eps * 255:g}/255"
    images = "rendered shapes" if shapes else f"images of {params.dataset.name}"
    worth = "it demonstrates the method, and is not evidence about real images" if shapes else "it has one seed"
    return f"This run attacks {count} {images} at {threat.norm} {radius}; {worth}."


def answer(table: pd.DataFrame, names: dict[str, str], most: float) -> str:
    """Whether CLIP is worth it, by the shield's difference from the threshold in `comparison.table` and its p.

    Judged are the classifiers that one of both leaves robust on 5 % of the images. The numbers are of the most robust.
    """
    table = table.set_index("classifier")
    shield, threshold = (table[table.defence == name] for name in (comparison.SHIELD, comparison.REFERENCE))
    best = shield["mean"].combine(threshold["mean"], max)
    judged, name = best[best >= WEAK].index, best.idxmax()
    sure, difference = shield.p[judged] < 0.05, shield.difference[judged]
    better, worse = (sure & (difference > 0)).sum(), (sure & (difference < 0)).sum()
    word = "Yes" if better else "No" if worse else "There is no clear difference"
    if not len(judged):
        word = "Nothing helps"
    elif 0 < better < len(judged):
        word = f"It depends on the classifier, and CLIP helps {better} of {len(judged)}"
    numbers = (
        f"{100 * shield['mean'][name]:.1f} % of images are robust with CLIP and {100 * threshold['mean'][name]:.1f} %"
    )
    text = f"**{word}: for the {names[name]} classifier, {numbers} without it.** Both are means over clean "
    text += (
        f"rejections up to {100 * most:.0f} %, under an attacker who knows the defence (p = {p_value(shield.p[name])})."
    )
    return text + " Without CLIP, a threshold on the classifier's own confidence rejects."


def verdict(table: pd.DataFrame, most: float, names: dict[str, str]) -> str:
    """The worth of CLIP for each classifier, from `comparison.table` up to the clean rejection `most`."""
    lines = []
    for name, rows in table.groupby("classifier", sort=False):
        (primary,), at_own = rows[rows.primary].itertuples(), 100 * rows.set_index("defence")[["rejection", "robust"]]
        shield, threshold = at_own.loc[comparison.SHIELD], at_own.loc[comparison.REFERENCE]
        mean, difference = (with_interval(primary, key) for key in ("mean", "difference"))
        lines.append(
            f"- **{names[name]}**: {primary.defence} has a mean robust accuracy of {mean} % over clean rejections "
            f"up to {100 * most:.0f} %. Its difference from a threshold on the logit margin, which needs no CLIP, is "
            f"{difference} points (p = {p_value(primary.p)}). Where the shield's own {shield.rejection:.1f} % of clean "
            f"images are rejected, {shield.robust:.1f} % are robust behind it, and {threshold.robust:.1f} % behind the "
            "threshold."
        )
    return "\n".join(lines)


def legend() -> str:
    """The scenarios of the result table, as HTML."""
    rows = [(title, name, text) for name, (title, text) in records.SCENARIOS.items()]
    return records.to_html(pd.DataFrame(rows, columns=["scenario", "name in the records", "meaning"]), words=True)


def meaning(findings: pd.DataFrame) -> str:
    """Whether the sanity rules hold."""
    violated = int((~findings.holds).sum())
    warning = f"{violated} of {len(findings)} rules are violated: do not trust that classifier's robust accuracies."
    return f"**{warning if violated else f'All {len(findings)} rules hold.'}**"
