"""Sentences of the notebooks and the report, as Markdown; the records fill in their numbers."""

import pandas as pd

from multishield import records
from paper.params import Params
from paper.report.tables import WEAK, p_value, with_interval
from paper.stages import comparison


def _share(metrics: pd.DataFrame, scenario: str, metric: str = "robust_accuracy") -> str:
    return f"{100 * metrics.set_index(['scenario', 'metric']).value[scenario, metric]:.1f} %"


def baseline(metrics: pd.DataFrame) -> str:
    """The result of scenario 1."""
    clean, robust = _share(metrics, "no_shield", "clean_accuracy"), _share(metrics, "no_shield")
    name = metrics.classifier.iloc[0]
    return f"**{name}** classifies {clean} of {metrics.n.iloc[0]} images correctly, and {robust} under AutoAttack."


def unaware(metrics: pd.DataFrame) -> str:
    """The result of scenario 2."""
    robust, rejection = _share(metrics, "unaware"), _share(metrics, "unaware", "clean_rejection")
    return f"The shield stops an unaware attacker on {robust} of the images, and rejects {rejection} of the clean ones."


def adaptive(metrics: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The result of scenario 3, from its records, too: they name attacks from elsewhere that have lowered it."""
    paper, joint, worst = (_share(metrics, scenario) for scenario in ("paper", "joint", "worst_case"))
    robust = f"{paper} of the images are robust under the paper's attack. The joint attack leaves {joint}, and all"
    others = rows.attack[(rows.scenario == "worst_case") & rows.attack.str.startswith("from ")].value_counts()
    words = (f" Images {name} break {count} that our attacks left." for name, count in others.items())
    return f"Against attackers who know the shield, {robust} attacks together leave **{worst}**.{''.join(words)}"


def failures(rows: pd.DataFrame) -> str:
    """How the shield lost images, from the records of scenario 3: who had to be moved to the wrong class."""
    lost = rows[(rows.scenario == "worst_case") & records.broken(rows)]
    before = (lost.clean_decision != lost.label) & ~records.rejected(lost, "clean")
    one = ~before & (lost.clean_clip == lost.attacked_decision)
    text = f"Of the {len(lost)} images that the shield loses, {before.sum()} were accepted as a wrong class before any "
    text += f"attack. On {one.sum()} CLIP preferred the wrong class already: only the classifier had to be moved. "
    return text + f"On {len(lost) - before.sum() - one.sum()} both models were moved to it."


def finding(metrics: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The results of the three scenarios for each classifier, from the metrics and the records."""
    by_name, groups = dict(list(rows.groupby("classifier"))), metrics.groupby("classifier", sort=False)
    return "\n".join(f"- {baseline(of)} {unaware(of)} {adaptive(of, by_name[name])}" for name, of in groups)


def data(params: Params, count: int) -> str:
    """The images and the threat model of this run, and the worth of the run as evidence."""
    threat, name = params.threat_model, params.dataset.name
    radius = f"{threat.eps:g}" if threat.norm == "L2" else f"{threat.eps * 255:g}/255"
    worth = {"shapes": "For real images see [the other results](../results/README.md)."}.get(name, "It has one seed.")
    images = {"shapes": "rendered shapes", "folder": "test images"}.get(name, f"images of {name}")
    return f"This run attacks {count} {images} at {threat.norm} {radius}. {worth}"


def answer(table: pd.DataFrame, most: float) -> str:
    """Whether CLIP is worth it: the primary hypothesis of `comparison.table`, where p < 0.05. Classifiers that both
    defences leave below `WEAK` are not judged. The numbers are of the most robust one, of those helped if any are."""
    table = table.set_index("classifier")
    shield, threshold = table[table.primary], table[table.defence == comparison.REFERENCE]
    best = shield["mean"].combine(threshold["mean"], max)
    signs = shield.difference.where(shield.p < 0.05, 0)[best >= WEAK]
    helped, word = (signs > 0).sum(), "No" if (signs < 0).any() else "There is no clear difference"
    name = best[signs.index[signs > 0] if helped else best.index].idxmax()
    depends = f"It depends on the classifier, and CLIP helps {helped} of {len(signs)}"
    word = "Nothing helps" if signs.empty else "Yes" if helped == len(signs) else depends if helped else word
    own, other = (f"{100 * of['mean'][name]:.1f} %" for of in (shield, threshold))
    text = f"**{word}. For the {name} classifier, {own} of images are robust with CLIP, and {other} without it.** "
    text += f"Both are means over clean rejections up to {100 * most:.0f} %, and the attacker knows the defence "
    text += f"(p = {p_value(shield.p[name])}). The first is of “{shield.defence[name]}”, "
    return f"{text}the second of a threshold on the classifier's confidence.".replace("p = <", "p <")


def cpr(rows: pd.DataFrame) -> str:
    """CPR as Chen et al. published it, without a threshold, for each classifier in the rows of `Stage.compare`."""
    text = ""
    for name, of in rows[rows.defence == "CPR"].groupby("classifier", sort=False):
        rejected, robust = (f"{100 * share:.1f} %" for share in ((of.t_clean < 0).mean(), (of.t_broken < 0).mean()))
        text += f"CPR as published, for {name}: it rejects {rejected} of the clean images, and {robust} are robust.\n"
    return text or "CPR was not run; `comparison.cpr: true` adds it.\n"


def verdict(table: pd.DataFrame, most: float) -> str:
    """The worth of CLIP for each classifier, from `comparison.table` up to the clean rejection `most`."""
    text = ""
    for name, rows in table.groupby("classifier", sort=False):
        (primary,) = rows[rows.primary].itertuples()
        mean, difference = (with_interval(primary, key) for key in ("mean", "difference"))
        text += f"- **{name}**: {primary.defence} has a mean robust accuracy of {mean} % over clean rejections up to "
        text += f"{100 * most:.0f} %. A threshold on the logit margin needs no CLIP, and the difference from it is "
        text += f"{difference} points (p = {p_value(primary.p)}).\n".replace("p = <", "p <")
    return text
