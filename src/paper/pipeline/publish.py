"""The last stage: reports/, in git and readable without running, from the results that the stages left in artifacts/.

It is cheap, and the only stage with outputs that DVC does not cache. So the others have DVC's run cache, and going back
to an earlier value of a parameter computes nothing again.
"""

import shutil
from pathlib import Path

import vl_convert

from multishield.files import write_atomically, write_text
from paper import paths
from paper.naming import run_name, runs
from paper.params import Params
from paper.pipeline.notebooks import read_notebook, source_path, with_source_text, write_notebook
from paper.report.pages import Page, title_of, write_page

INDEX = "index.html"
KEPT = ("seeds.csv", "seeds.md")  # of benchmarks/seeds.py


def publish() -> Path:
    """Write reports/: executed notebooks with the words of their sources, a page of each, figures, tables, records.

    Files of another experiment are removed, but for the table over seeds.

    Returns:
        The index page: the report's own, with a list of the others.
    """
    params = Params.load()
    written, pages = set(), []
    for stage, item in runs(params.classifiers):
        name = run_name(stage, item)
        executed = read_notebook(paths.artifacts("notebooks", f"{name}.ipynb"))
        notebook = with_source_text(executed, read_notebook(source_path(stage)))
        title, is_index = title_of(notebook) + (f": {item}" if item else ""), stage == "report"
        pages.append(Page(name, title, None if is_index else name))
        written.add(write_notebook(notebook, paths.reports(f"{name}.ipynb")))
        if is_index:
            written.add(write_page(notebook, paths.reports(INDEX), params.report.title, pages))
        else:
            written.add(write_page(notebook, paths.reports(f"{name}.html"), title))
    written |= _copied(paths.artifacts("report"), paths.reports())
    for old in sorted(paths.reports().rglob("*"), reverse=True):
        if old.is_file() and old not in written and old.name not in KEPT:
            old.unlink()
        elif old.is_dir() and not any(old.iterdir()):
            old.rmdir()
    # For `dvc plots show`, whose page would else load it from a server (.dvc/plots/page.html).
    write_text(paths.state("vega.js"), vl_convert.javascript_bundle())
    return paths.reports(INDEX)


def _copied(source: Path, target: Path) -> set[Path]:
    files = [p for p in source.rglob("*") if p.is_file()]
    return {write_atomically(target / p.relative_to(source), lambda new, p=p: shutil.copyfile(p, new)) for p in files}
