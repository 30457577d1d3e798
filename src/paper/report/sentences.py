"""Sentences of the notebooks and the report, as Markdown; the records fill in their numbers."""

import pandas as pd

from multishield import records, sanity
from paper.params import Params
from paper.report.tables import p_value
from paper.stages import comparison


def _share(metrics: pd.DataFrame, scenario: str, metric: str = "robust_accuracy") -> str:
    """A metric of one classifier in per cent: `54.0 %`."""
    return f"{100 * metrics.set_index(['scenario', 'metric']).value[scenario, metric]:.1f} %"


def baseline(name: str, metrics: pd.DataFrame) -> str:
    """The result of scenario 1."""
    n, clean = metrics.n.iloc[0], _share(metrics, "no_shield", "clean_accuracy")
    return f"**{name}** classifies {clean} of {n} images correctly, and {_share(metrics, 'no_shield')} under AutoAttack."


def unaware(name: str, metrics: pd.DataFrame) -> str:
    """The result of scenario 2."""
    return (
        f"AutoAttack attacked **{name}** on {metrics.n.iloc[0]} images. The shield accepts no wrong class on "
        f"{_share(metrics, 'unaware')} of them, and rejects {_share(metrics, 'unaware', 'clean_rejection')} of the "
        "clean images."
    )


def adaptive(name: str, metrics: pd.DataFrame, passes: pd.DataFrame) -> str:
    """The result of scenario 3; passes are `Evaluation.passes`."""
    forwards = passes.set_index("scenario").forwards
    return (
        f"**{name}** with the shield is robust on {_share(metrics, 'paper')} of {metrics.n.iloc[0]} images against the "
        f"paper's attack ({forwards['paper']:.0f} forward passes per image), on {_share(metrics, 'joint')} against the "
        f"joint attack ({forwards['joint']:.0f} forward passes per image), and on {_share(metrics, 'worst_case')} "
        "against all attacks together."
    )


def introduction(params: Params) -> str:
    """The shield, the threat model, and a note if the run is a demonstration."""
    threat = params.threat_model
    radius = f"{threat.eps:g}" if threat.norm == "L2" else f"{threat.eps * 255:g}/255"
    text = (
        f"A classifier is paired with CLIP. If CLIP prefers another class by more than the tolerance "
        f"{params.multishield.tolerance:g}, the shield rejects the image. Threat model: {threat.norm}, radius "
        f"{radius}. Ratios are per cent of all N images, with 95 % Wilson intervals."
    )
    note = "This run uses rendered shapes. It demonstrates the method; it is not evidence about real images."
    return f'{text}\n\n<p class="note">{note}</p>' if params.dataset.name == "shapes" else text


def finding(metrics: pd.DataFrame) -> str:
    """The robust accuracies of each classifier."""
    return "\n".join(
        f"- **{name}**, {rows.n.iloc[0]} images: without the shield {_share(rows, 'no_shield')} are robust under "
        f"AutoAttack. With the shield {_share(rows, 'unaware')} are robust against an unaware attacker, "
        f"{_share(rows, 'paper')} against the paper's adaptive attack, and **{_share(rows, 'worst_case')}** against "
        "all attacks together."
        for name, rows in metrics.groupby("classifier", sort=False)
    )


def verdict(table: pd.DataFrame) -> str:
    """The worth of CLIP for each classifier, from `comparison.table`: defences at the shield's own clean rejection."""
    if not len(table):
        return (
            f"The defences are not compared: `dataset.validation` is less than {comparison.FEWEST} images, so no "
            "threshold was chosen."
        )
    lines = []
    for name, rows in table[table.own].groupby("classifier", sort=False):
        rows = rows.set_index("defence").sort_values(["robust", "clean"])
        shield, threshold, best = rows.loc["Multi-Shield"], rows.loc[comparison.REFERENCE], rows.iloc[-1]
        lines.append(
            f"- **{name}**, {shield.n} images: Multi-Shield gives {_with_costs(shield)}. A threshold on the "
            f"classifier's logit margin needs no CLIP. It gives {_with_costs(threshold)}. Only the shield is robust on "
            f"{shield.gained} images, only the threshold on {shield.lost} (McNemar's p: {p_value(shield.p)}). "
            + (f"The best defence is {best.name}: {_with_costs(best)}." if best.robust else "No defence is better.")
        )
    return "\n".join(lines)


def _with_costs(row: pd.Series) -> str:
    robust, clean, rejection = (f"{100 * row[share]:.1f} %" for share in ("robust", "clean", "rejection"))
    return f"{robust} robust accuracy, with {clean} clean accuracy and {rejection} clean rejection"


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
