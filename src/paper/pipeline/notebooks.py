"""The stages and their notebooks: one naming law, and a form that opening and running a notebook does not change."""

from pathlib import Path

import nbformat

from multishield.errors import UserError
from multishield.files import write_text
from paper import paths
from paper.params.values import STUDIES

STAGES = ("dataset", "training", "alignment", "baseline", "multishield", "adaptive", "comparison", "studies", "report")
PER_CLASSIFIER = ("training", "baseline", "multishield", "adaptive", "comparison")


def runs(classifiers: list[str]) -> list[tuple[str, str | None]]:
    """Every run of a notebook, in the order of the pipeline: the stage, and its classifier or its study."""
    first, later = STAGES[:3], STAGES[3:-2]
    names: list[tuple[str, str | None]] = []
    for stage in first:
        names += [(stage, name) for name in (classifiers if stage in PER_CLASSIFIER else [None])]
    names += [(stage, name) for name in classifiers for stage in later]
    return [*names, *(("studies", study) for study in STUDIES), (STAGES[-1], None)]


def parameter(stage: str) -> str:
    """The variable of a notebook that says what it is run for."""
    return "study" if stage == "studies" else "classifier"


def run_name(stage: str, item: str | None = None) -> str:
    """The name of a run, such as `04_baseline_standard`: that of its executed notebook and of its page."""
    return f"{STAGES.index(stage) + 1:02d}_{stage}" + (f"_{item}" if item else "")


def source_notebook(stage: str) -> str:
    """The file name of a stage's notebook, such as `04_baseline.ipynb`."""
    return f"{run_name(stage)}.ipynb"


def read_source(stage: str) -> nbformat.NotebookNode:
    """A stage's notebook as it stands in notebooks/, in canonical form."""
    return canonical(read_notebook(paths.root() / "notebooks" / source_notebook(stage)))


def canonical(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook without what opening or running it changes: outputs, counts, random ids, metadata but for tags."""
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
        cell["metadata"] = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.NotebookNode(kernelspec=kernel, language_info={"name": "python"})
    return notebook


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook.

    Raises:
        UserError: the file is missing or is not a notebook.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        return notebook
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; restore it with `git checkout -- notebooks`") from None
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is not a notebook; restore it with `git checkout -- notebooks`") from None


def write_notebook(notebook: nbformat.NotebookNode, path: Path) -> Path:
    """Write a notebook, atomically."""
    return write_text(path, nbformat.writes(notebook) + "\n")


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The code cells, but for the one that papermill adds."""
    cells = (c for c in notebook.cells if c.cell_type == "code")
    return [c for c in cells if "injected-parameters" not in c.metadata.get("tags", [])]


def retold(executed: nbformat.NotebookNode, source: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An executed notebook with the words of its source as they are now: a changed sentence runs no stage again.

    Outputs belong to code cells in their order. Where the code has become another, the executed notebook is returned.
    """
    done = code_cells(executed)
    if len(done) != len(code_cells(source)):
        return executed
    injected = [c for c in executed.cells if "injected-parameters" in c.metadata.get("tags", [])]
    cells = []
    for cell in source.cells:
        if cell.cell_type == "code":
            ran = done.pop(0)
            cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
        cells.append(cell)
        if "parameters" in cell.metadata.get("tags", []):
            cells += injected
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    source.cells = cells
    return source
