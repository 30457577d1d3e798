"""The notebooks of the stages, in a form that opening and running them does not change."""

from pathlib import Path

import nbformat

from multishield.errors import UserError
from multishield.files import write_text
from paper import paths
from paper.naming import run_name


def source_notebook(stage: str) -> str:
    """The file name of a stage's notebook, such as `04_baseline.ipynb`."""
    return f"{run_name(stage)}.ipynb"


def read_source(stage: str) -> nbformat.NotebookNode:
    """A stage's notebook from notebooks/, in canonical form."""
    return canonical(read_notebook(paths.root() / "notebooks" / source_notebook(stage)))


def canonical(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook without the marks of opening and running it: outputs, counts, random ids, metadata but for tags."""
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
        cell["metadata"] = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.NotebookNode(kernelspec=kernel, language_info={"name": "python"})
    return notebook


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook. Raises UserError if the file is missing or is not a notebook."""
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
    """The code cells, without the one that papermill adds."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and not _is_injected(cell)]


def _is_injected(cell: nbformat.NotebookNode) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", [])


def with_source_text(executed: nbformat.NotebookNode, source: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An executed notebook with the text of its source as it is now: a changed sentence runs no stage again.

    Outputs belong to code cells in their order. Where the code is not the same, the executed notebook is returned.
    """
    ran = code_cells(executed)
    if len(ran) != len(code_cells(source)):
        return executed
    cells = []
    for cell in source.cells:
        if cell.cell_type == "code":
            done = ran.pop(0)
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
        cells.append(cell)
        if "parameters" in cell.metadata.get("tags", []):
            cells += [c for c in executed.cells if _is_injected(c)]
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    source.cells = cells
    return source
