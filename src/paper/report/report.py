"""The files of the report stage in artifacts/report/: records, tables and figures (`publish` copies them)."""

from pathlib import Path

import pandas as pd
from IPython.display import Image
from matplotlib.figure import Figure

from multishield import records, sanity, zero_shot
from multishield.files import load_tensors, write_atomically, write_json, write_text
from paper import paths
from paper.naming import STUDIES
from paper.params import Params
from paper.report import tables
from paper.stages import comparison, studies


def gather(params: Params) -> pd.DataFrame:
    """The records of all scenarios of all classifiers."""
    stages = ("baseline", "multishield", "adaptive")
    return records.load(*(paths.artifacts(s, name, "records.csv") for name in params.classifiers for s in stages))


def histories(params: Params) -> dict[str, pd.DataFrame]:
    """Training histories of the classifiers, "CLIP" and its "robust tower"; loaded models have none."""
    files = {name: paths.artifacts("training", name, "history.csv") for name in params.classifiers}
    files |= {"CLIP": paths.artifacts("alignment", "history.csv")}
    files |= {"robust tower": paths.artifacts("alignment", "robust.csv")}
    frames = {name: pd.read_csv(file) for name, file in files.items() if file.is_file()}
    return {name: frame for name, frame in frames.items() if frame.epoch.min() > 0}


def _file(*parts: str) -> Path:
    return paths.artifacts("report", *parts)


def save_table(table: pd.DataFrame, name: str) -> None:
    """Write tables/<name>.csv, unless the table is empty."""
    if len(table):
        records.save(table, _file("tables", f"{name}.csv"))


def write_results(all_records: pd.DataFrame) -> pd.DataFrame:
    """Write the records, the metrics and the result table; returns the metrics."""
    metrics = records.metrics(all_records)
    records.save(all_records, _file("records.csv"))
    save_table(metrics, "metrics")
    write_json(_file("metrics.json"), tables.nested(metrics))
    write_json(_file("headline.json"), tables.headline(metrics))
    table = records.results(metrics)
    columns = "ll" + "r" * (len(table.columns) - 2)
    write_text(_file("tables", "results.md"), records.to_markdown(table))
    write_text(_file("tables", "results.tex"), table.to_latex(index=False, escape=True, column_format=columns))
    return metrics


def write_findings(params: Params, all_records: pd.DataFrame) -> pd.DataFrame:
    """Evaluate the sanity rules; write the findings and the records of their runs."""
    runs = records.load(*(paths.artifacts("adaptive", name, "sanity.csv") for name in params.classifiers))
    records.save(runs, _file("sanity.csv"))
    text = load_tensors(paths.artifacts("alignment", "text.safetensors"))["text"]
    findings = sanity.check(all_records, runs, zero_shot.prompt_similarity(text).numpy())
    write_text(_file("tables", "sanity.md"), records.to_markdown(findings))
    return findings


def write_comparison(params: Params, metrics: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Write the records of the comparison, its tables and the report's first table; returns the tables by name."""
    rows = records.load(*(paths.artifacts("comparison", name, "records.csv") for name in params.classifiers))
    tolerance, names = params.multishield.tolerance, tables.names_of(params)
    _written("comparison", rows, table := comparison.table(rows, params.comparison, tolerance))
    made = {"rejection": comparison.curves(rows, params.comparison.rejection)}
    made |= {"alone": comparison.alone(rows, tolerance), "both": comparison.both_attackers(rows)}
    made |= {"completeness": comparison.completeness(rows, params.comparison)}
    for name, other in made.items():
        save_table(other, name)
    summary = tables.summary(*(tables.named(frame, names) for frame in (metrics, table, rows)))
    write_text(_file("tables", "summary.md"), records.to_markdown(summary))
    return made | {"comparison": table, "summary": summary, "rows": rows}


def write_study(name: str) -> pd.DataFrame:
    """Write the records of "studies", or of "bounds" (the study of sigma), and their table. Returns the table."""
    items = ["sigma"] if name == "bounds" else [study for study in STUDIES if study != "sigma"]
    rows = records.load(*(paths.artifacts("studies", item, "records.csv") for item in items))
    table = studies.bounds(rows) if name == "bounds" else studies.table(rows)
    if name == "studies":
        write_json(_file("studies.json"), tables.extremes(table))
    return _written(name, rows, table)


def _written(name: str, rows: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    records.save(rows, _file(f"{name}.csv"))
    save_table(table, name)
    write_text(_file("tables", f"{name}.md"), records.to_markdown(getattr(tables, name)(table)))
    return table


def write_training(histories: dict[str, pd.DataFrame]) -> None:
    """Write the accuracies of the training histories for `dvc plots show`: a row per model, epoch and accuracy."""
    if histories:
        table = pd.concat(histories, names=["model"]).reset_index("model")
        accuracies = [column for column in table if column.endswith("accuracy")]
        save_table(table.melt(["model", "epoch"], accuracies, "curve", "accuracy").dropna(), "training")


class Picture(Image):
    """A figure of `paper.report.figures` in a notebook; the report's page shows it from figures/<name>.png."""

    def __init__(self, figure: Figure, name: str):
        about = figure.about | {"file": f"figures/{name}.png", "width": round(96 * figure.get_figwidth())}
        save = {"format": "png", "metadata": {"Software": None}}  # whose version would change the bytes
        path = write_atomically(_file(about["file"]), lambda p: figure.savefig(p, **save))
        super().__init__(filename=path, metadata=about)
