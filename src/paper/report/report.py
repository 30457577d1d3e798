"""The report stage: from records to tables, figures and metrics, in artifacts/report/ (`publish` copies them)."""

import base64
import html

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from multishield import records, sanity
from multishield.files import write_json, write_text
from multishield.tensors import load_tensors
from paper import paths
from paper.params import Params
from paper.params.values import STUDIES
from paper.report import figures, tables
from paper.stages import comparison, studies


def gather(params: Params) -> pd.DataFrame:
    """The records of all scenarios of all classifiers."""
    stages = ("baseline", "multishield", "adaptive")
    return records.load(*(paths.artifacts(s, name, "records.csv") for name in params.classifiers for s in stages))


def histories(params: Params) -> dict[str, pd.DataFrame]:
    """Training histories: the classifiers', "CLIP"'s and that of its "robust tower". Loaded models have no curve."""
    found = {name: paths.artifacts("training", name, "history.csv") for name in params.classifiers}
    found["CLIP"], found["robust tower"] = (paths.artifacts("alignment", f"{n}.csv") for n in ("history", "robust"))
    frames = {name: pd.read_csv(path) for name, path in found.items() if path.is_file()}
    return {name: frame for name, frame in frames.items() if frame.epoch.min() > 0}


def introduction(params: Params) -> str:
    """What was measured, as Markdown: the threat model, the scenarios, and that a demonstration is one."""
    threat = params.threat_model
    radius = f"{threat.eps:g}" if threat.norm == "L2" else f"{threat.eps * 255:g}/255"
    text = (
        f"A classifier is paired with CLIP; where the two disagree by more than the tolerance "
        f"{params.multishield.tolerance:g}, the shield rejects the image. Threat model: {threat.norm}, radius "
        f"{radius}. Ratios are per cent of all N images, with 95 % Wilson intervals."
    )
    note = "This run uses rendered shapes. It demonstrates the method; it is not evidence about real images."
    return f'{text}\n\n<p class="note">{note}</p>' if params.dataset.name == "shapes" else text


def finding(metrics: pd.DataFrame) -> str:
    """What a reader takes away, a sentence per classifier from its own figures, as Markdown."""
    value = metrics[metrics.metric == "robust_accuracy"].set_index(["classifier", "scenario"]).value
    lines = []
    for name, of in metrics.groupby("classifier", sort=False):
        robust = {s: f"{value[name, s]:.1%}" for s in ("baseline", "multishield", "paper", "adaptive")}
        lines.append(
            f"- **{name}**, {of.n.iloc[0]} images: AutoAttack leaves {robust['baseline']} robust without the shield, "
            f"{robust['multishield']} with it while the attacker is unaware of it. Of the attacks that know it, the "
            f"paper's leaves {robust['paper']}, all together **{robust['adaptive']}**."
        )
    return "\n".join(lines)


def legend() -> str:
    """What the scenarios are, as Markdown."""
    scenarios = records.SCENARIOS.items()
    return "\n".join(f"- **{records.TITLES[name]}** (in the records `{name}`): {text}" for name, text in scenarios)


def meaning(findings: pd.DataFrame) -> str:
    """Whether the sanity rules hold, and what they mean, as Markdown."""
    violated = int((~findings.holds).sum())
    verdict = f"All {len(findings)} rules hold."
    if violated:
        verdict = (
            f"{violated} of {len(findings)} rules are violated: do not trust the robust accuracies of that classifier."
        )
    return f"**{verdict}**\n\n" + "\n".join(f"- **{rule}**: {text}" for rule, text in sanity.RULES.items())


def write_results(all_records: pd.DataFrame, classes: int) -> pd.DataFrame:
    """Write records, metrics and the tables; returns the metrics."""
    metrics = records.metrics(all_records, classes)
    records.save(all_records, paths.artifacts("report", "records.csv"))
    write_json(paths.artifacts("report", "metrics.json"), tables.nested(metrics))
    write_json(paths.artifacts("report", "headline.json"), tables.headline(metrics))
    _write_table("metrics.csv", metrics.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    table = tables.results(metrics)
    _write_table("results.md", tables.to_markdown(table))
    _write_table("results.tex", tables.to_latex(table))
    return metrics


def _write_table(name: str, text: str) -> None:
    write_text(paths.artifacts("report", "tables", name), text)


def write_findings(params: Params, all_records: pd.DataFrame, classes: int) -> pd.DataFrame:
    """Evaluate the sanity rules and write them, with the records that they rest on."""
    runs = records.load(*(paths.artifacts("adaptive", name, "sanity.csv") for name in params.classifiers))
    records.save(runs, paths.artifacts("report", "sanity.csv"))
    text = load_tensors(paths.artifacts("alignment", "text.safetensors"))["text"].numpy()
    findings = sanity.check(all_records, runs, classes, text @ text.T)
    _write_table("sanity.md", tables.to_markdown(findings))
    return findings


def write_published(table: pd.DataFrame) -> None:
    """Write published beside measured figures, where there are any."""
    if len(table):
        _write_table("published.csv", table.to_csv(index=False, lineterminator="\n"))


def write_equal_rejection(params: Params) -> pd.DataFrame:
    """The defences at equal clean rejection (`comparison.table`), of all classifiers; written with their records."""
    files = [paths.artifacts("comparison", name, "records.csv") for name in params.classifiers]
    rows = pd.concat([pd.read_csv(f, dtype={"attack": str}) for f in files], ignore_index=True)
    write_text(paths.artifacts("report", "comparison.csv"), rows.to_csv(index=False, lineterminator="\n"))
    table = comparison.table(rows)
    if len(table):
        _write_table("comparison.csv", table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
        _write_table("comparison.md", tables.to_markdown(tables.comparison(table)))
    return table


def verdict(table: pd.DataFrame) -> str:
    """What CLIP is worth, in a sentence per classifier, as Markdown: at the shield's own clean rejection."""
    if not len(table):
        return "There are few validation images (`dataset.validation`), so no threshold was chosen: no comparison."
    lines = []
    for name, of in table[table.own].groupby("classifier", sort=False):
        by = of.set_index("defence").sort_values(["robust", "clean"])
        shield, simple, best = by.loc["Multi-Shield"], by.loc[comparison.REFERENCE], by.iloc[-1]
        most = f"{best.robust:.1%}"
        if best.robust:  # else all of them are the best
            most += f": {best.name} (clean accuracy {best.clean:.1%}, rejection {best.rejection:.1%}; the shield "
            most += f"{shield.clean:.1%} and {shield.rejection:.1%})"
        lines.append(
            f"- **{name}**: at the shield's own clean rejection ({shield.rejection:.1%}; the threshold's is "
            f"{simple.rejection:.1%}) Multi-Shield leaves {shield.robust:.1%} robust, a threshold on the classifier's "
            f"own logit margin {simple.robust:.1%}. {shield.gained} images are held by the shield alone, {shield.lost} "
            f"by the threshold alone (McNemar's p: {tables.p_value(shield.p)}, N = {shield.n}). The most that any "
            f"defence leaves there is {most}."
        )
    return "\n".join(lines)


def write_studies(classes: int) -> pd.DataFrame:
    """The studies (`studies.table`); written with their records."""
    files = [paths.artifacts("studies", name, "records.csv") for name in STUDIES]
    rows = pd.concat([pd.read_csv(f, dtype={"value": str, "attack": str}) for f in files], ignore_index=True)
    write_text(paths.artifacts("report", "studies.csv"), rows.to_csv(index=False, lineterminator="\n"))
    table = studies.table(rows, classes)
    _write_table("studies.csv", table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    _write_table("studies.md", tables.to_markdown(tables.studies(table)))
    return table


def curves(params: Params) -> dict[str, pd.DataFrame]:
    """The robustness curve of each classifier's shield, see `portfolio.curve`."""
    return {name: pd.read_csv(paths.artifacts("adaptive", name, "curve.csv")) for name in params.classifiers}


class Picture:
    """A figure that is shown in a notebook, and on the report's page from a file: once for both.

    Args:
        name: of the file in figures/. text: what a reader is told who does not see it.
    """

    def __init__(self, figure: Figure, name: str, text: str):
        self.text, self.file = html.escape(" ".join(text.split())), f"figures/{name}.png"
        self.path = figures.save(figure, paths.artifacts("report", self.file))
        plt.close(figure)

    def __repr__(self) -> str:
        return f"<Picture {self.file}>"  # without an address in memory, which every run would change

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        data = base64.b64encode(self.path.read_bytes()).decode()
        return {"image/png": data}, {"image/png": {"alt": self.text, "file": self.file}}
