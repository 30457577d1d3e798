"""The last stage: reports/, in git and readable without running, from the results that the stages left in artifacts/.

It is cheap, and the only stage with outputs that DVC does not cache: for the others DVC remembers earlier runs.
"""

import shutil
from functools import partial

import vl_convert

from multishield.files import write_atomically, write_text
from paper import paths
from paper.naming import run_name, runs
from paper.params import Params, read_yaml
from paper.pipeline.notebooks import read_notebook, source_path, with_source_text, write_notebook
from paper.report.pages import title_of, write_page
from paper.report.tables import names_of

KEPT = ("seeds.csv", "seeds.md")  # of benchmarks/seeds.py


def publish() -> None:
    """Write reports/: executed notebooks with the text of their sources, a page of each, figures, tables, records.

    Files of another experiment are removed, but for the table over seeds.
    """
    params, citation = Params.load(), read_yaml(paths.root() / "CITATION.cff")
    authors = ", ".join(" ".join(author.values()) for author in citation["authors"])
    written, names, pages = set(), names_of(params), []
    for stage, item in runs(params.classifiers):
        name = run_name(stage, item)
        executed = read_notebook(paths.artifacts("notebooks", f"{name}.ipynb"))
        notebook = with_source_text(executed, read_notebook(source_path(stage)))
        title = title_of(notebook) + (f": {names.get(item, item)}" if item else "")
        pages.append({"name": name, "title": title, "file": name, "notebook": notebook})
    pages[-1] |= {"title": params.report.title, "file": "index"}
    about = f"{citation['title']}, version {citation['version']}, by {authors}"
    for page in pages:
        written.add(write_notebook(page["notebook"], paths.reports(f"{page['name']}.ipynb")))
        written.add(write_page(page, pages, paths.reports(), about))
    for file in (file for file in paths.artifacts("report").rglob("*") if file.is_file()):
        target = paths.reports() / file.relative_to(paths.artifacts("report"))
        written.add(write_atomically(target, partial(shutil.copyfile, file)))
    for old in sorted(paths.reports().rglob("*"), reverse=True):
        if old.is_file() and old not in written and old.name not in KEPT:
            old.unlink()
        elif old.is_dir() and not any(old.iterdir()):
            old.rmdir()
    # For `dvc plots show`, whose page would else load it from a server (.dvc/plots/page.html).
    write_text(paths.state("vega.js"), vl_convert.javascript_bundle())
