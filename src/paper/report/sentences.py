"""Sentences of the notebooks and the report, as Markdown; the records fill in their numbers."""

import pandas as pd

from multishield import records, sanity
from paper.params import Params
from paper.report.tables import p_value, with_interval
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


def finding(metrics: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The results of the three scenarios for each classifier, from the metrics and the records."""
    groups, by_name = metrics.groupby("classifier", sort=False), dict(list(rows.groupby("classifier")))
    lines = (f"- {baseline(name, m)} {unaware(m)} {adaptive(m, by_name[name])}" for name, m in groups)
    return "\n".join(lines)


def introduction(params: Params) -> str:
    """The shield, the threat model, and a note if the run is a demonstration."""
    threat = params.threat_model
    radius = f"{threat.eps:g}" if threat.norm == "L2" else f"{threat.eps * 255:g}/255"
    text = (
        "A classifier is paired with CLIP. If CLIP prefers another class by more than the tolerance "
        f"{params.multishield.tolerance:g}, the shield rejects the image. Threat model: {threat.norm}, radius "
        f"{radius}. Ratios are per cent of all N images, with 95 % Wilson intervals."
    )
    note = "This run uses rendered shapes. It demonstrates the method; it is not evidence about real images."
    return text + (f'\n\n<p class="note">{note}</p>' if params.dataset.name == "shapes" else "")


def verdict(table: pd.DataFrame, most: float) -> str:
    """The worth of CLIP for each classifier, from `comparison.table` up to the clean rejection `most`."""
    lines = []
    for name, rows in table.groupby("classifier", sort=False):
        (primary,), at_own = rows[rows.primary].itertuples(), 100 * rows.set_index("defence")[["rejection", "robust"]]
        shield, threshold = at_own.loc[comparison.SHIELD], at_own.loc[comparison.REFERENCE]
        mean, difference = (with_interval(primary, key) for key in ("mean", "difference"))
        lines.append(
            f"- **{name}**: {primary.defence} has a mean robust accuracy of {mean} % over clean rejections up to "
            f"{most:.0%}. Its difference from a threshold on the logit margin, which needs no CLIP, is {difference} "
            f"points (p = {p_value(primary.p)}). Where the shield's own {shield.rejection:.1f} % of clean images are "
            f"rejected, {shield.robust:.1f} % are robust behind it, and {threshold.robust:.1f} % behind the threshold."
        )
    return "\n".join(lines)


def legend() -> str:
    """The scenarios of the result table."""
    scenarios = records.SCENARIOS.items()
    return "\n".join(f"- **{title}** (`{name}` in the records): {text}" for name, (title, text) in scenarios)


def meaning(findings: pd.DataFrame) -> str:
    """Whether the sanity rules hold, and the rules themselves."""
    violated = int((~findings.holds).sum())
    warning = f"{violated} of {len(findings)} rules are violated: do not trust that classifier's robust accuracies."
    rules = "\n".join(f"- **{rule}**: {text}" for rule, text in sanity.RULES.items())
    return f"**{warning if violated else f'All {len(findings)} rules hold.'}**\n\n{rules}"
