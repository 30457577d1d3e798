"""The report's files: records, and the tables of them for readers, LaTeX and DVC; figures (`publish` copies them)."""

from pathlib import Path

import pandas as pd
from IPython.display import Image
from matplotlib.figure import Figure

from multishield import records, sanity
from multishield.files import load_tensors, write_atomically, write_json, write_text
from paper import paths
from paper.naming import STUDIES
from paper.params import Params
from paper.report import sentences, tables
from paper.stages import comparison, studies


def frames(params: Params) -> dict[str, pd.DataFrame]:
    """All records of this run, and the cosines of the classes' text embeddings: no table of the report needs more."""
    names, text = params.classifiers, load_tensors(paths.artifacts("alignment", "text.safetensors"))["text"]
    varied = [study for study in STUDIES if study != "sigma"]
    made = {"records": load(names, "baseline", "multishield", "adaptive")}
    made |= {"sanity": load(names, "adaptive", file="sanity.csv"), "bounds": load(["sigma"], "studies")}
    made |= {"comparison": load(names, "comparison"), "studies": load(varied, "studies")}
    return made | {"cosines": pd.DataFrame((text @ text.T).numpy()).round(6)}  # as the file has them


def load(items: list[str], *stages: str, file: str = "records.csv") -> pd.DataFrame:
    """The records of these stages for each classifier or study."""
    return records.load(*(paths.artifacts(stage, item, file) for item in items for stage in stages))


def write(given: dict[str, pd.DataFrame], params: Params, folder: Path) -> dict[str, pd.DataFrame]:
    """Write `frames` and all tables that are made of them to a folder. Returns the tables by name, and some records."""
    all_records, rows, tolerance = given["records"], given["comparison"], params.multishield.tolerance
    made = {"metrics": records.metrics(all_records), "comparison": comparison.table(rows, params.comparison, tolerance)}
    made |= {"rejection": comparison.curves(rows, params.comparison.rejection)}
    made |= {"alone": comparison.alone(rows, tolerance), "both": comparison.both_attackers(rows)}
    made |= {"completeness": comparison.completeness(rows, params.comparison)}
    made |= {"studies": studies.table(given["studies"]), "bounds": studies.bounds(given["bounds"])}
    for place, some in ((folder, given), (folder / "tables", made)):
        for name, frame in some.items():
            records.save(frame, place / f"{name}.csv")
    frames_of = (made["metrics"], made["comparison"], rows, all_records)
    metrics, table, margins, scenarios = (tables.named(frame, params) for frame in frames_of)
    said = f"{sentences.answer(table, params.comparison.rejection)}\n\n{sentences.finding(metrics, scenarios)}\n"
    write_text(folder / "sentences.md", said)
    shown = {"results": records.results(made["metrics"]), "summary": tables.summary(metrics, table, margins)}
    shown |= {"sanity": sanity.check(all_records, given["sanity"], given["cosines"].to_numpy())}
    shown |= {name: getattr(tables, name)(made[name]) for name in ("comparison", "studies", "bounds")}
    for name, table in shown.items():
        write_text(folder / "tables" / f"{name}.md", records.to_markdown(table))
    latex = {"index": False, "escape": True, "column_format": "ll" + "r" * (len(shown["results"].columns) - 2)}
    write_text(folder / "tables" / "results.tex", shown["results"].to_latex(**latex))
    write_json(folder / "metrics.json", tables.nested(made["metrics"]))
    write_json(folder / "headline.json", tables.headline(made["metrics"], made["studies"]))
    return made | {name: shown[name] for name in ("sanity", "summary")} | {"rows": rows, "records": all_records}


class Picture(Image):
    """A figure of `paper.report.figures` in a notebook; the report's page shows it from figures/<name>.png."""

    def __init__(self, figure: Figure, name: str):
        about = figure.about | {"file": f"figures/{name}.png", "width": round(96 * figure.get_figwidth())}
        save = {"format": "png", "metadata": {"Software": None}}  # whose version would change the bytes
        path = write_atomically(paths.artifacts("report", about["file"]), lambda p: figure.savefig(p, **save))
        super().__init__(filename=path, metadata=about)
