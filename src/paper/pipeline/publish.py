"""The last stage: reports/, in git and readable without running, from artifacts/. DVC caches its outputs in no run."""

import hashlib
import shutil
from functools import partial

import vl_convert

from multishield.files import write_atomically, write_text
from paper import paths
from paper.naming import PER_CLASSIFIER, run_name, runs
from paper.params import Params, read_yaml
from paper.pipeline.notebooks import read_notebook, source_path, with_source_text, write_notebook
from paper.report.pages import title_of, write_page
from paper.report.tables import names_of

KEPT = ("seeds.csv", "seeds.md")  # of benchmarks/seeds.py


def code_of_stages() -> str:
    """A name for the code, packages and arithmetic of all stages with a classifier: a hash of what `check` wrote."""
    folder = paths.artifacts("check")
    files = sorted(file for stage in PER_CLASSIFIER for file in folder.glob(f"{stage}_*.json"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def publish() -> None:
    """Write reports/: notebooks and pages, figures, tables, records. Other files but the seeds' are removed there."""
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
    about = f"{citation['title']}, version {citation['version']} of {citation['date-released']} by {authors}, "
    about += f"code {code_of_stages()}"
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
