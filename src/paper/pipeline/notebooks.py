"""Notebooks: reading, writing, and the text of a source beside the outputs of its run."""

import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from multishield.errors import UserError
from multishield.files import write_text
from paper import paths
from paper.naming import run_name


def source_path(stage: str) -> Path:
    """The notebook of a stage, such as `notebooks/04_baseline.ipynb`."""
    return paths.root() / "notebooks" / f"{run_name(stage)}.ipynb"


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook. Raises UserError if the file is missing or is not a notebook."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        return notebook
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; restore it with `git checkout -- notebooks`") from None
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is not a notebook; restore it with `git checkout -- notebooks`") from None


def write_notebook(notebook: NotebookNode, path: Path) -> Path:
    """Write a notebook; see `text_of`."""
    return write_text(path, text_of(notebook))


def text_of(notebook: NotebookNode) -> str:
    """A notebook as text: equal runs give equal bytes. Its ids are numbered, and the only metadata are cells' tags."""
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"] = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return nbformat.writes(notebook) + "\n"


def cleared(text: str) -> str:
    """The text of a notebook without the outputs of a run by hand. Text that is no notebook is returned as it is."""
    try:
        notebook = nbformat.reads(text, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError):
        return text
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    return text_of(notebook)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells, without the one that papermill adds."""
    added = "injected-parameters"
    return [cell for cell in notebook.cells if cell.cell_type == "code" and added not in cell.metadata.get("tags", [])]


def with_source_text(executed: NotebookNode, source: NotebookNode) -> NotebookNode:
    """An executed notebook with the text of its source as it is now: a changed sentence runs no stage again.

    Code cells belong together in their order. Where their number is not the same, the executed notebook is returned.
    """
    ran, cells = code_cells(executed), []
    if len(ran) != len(code_cells(source)):
        return executed
    for cell in source.cells:
        cells.append(ran.pop(0) if cell.cell_type == "code" else cell)
        if "parameters" in cell.metadata.get("tags", []):
            cells += [c for c in executed.cells if "injected-parameters" in c.metadata.get("tags", [])]
    source.cells = cells
    return source


if __name__ == "__main__":  # git's filter, which the Makefile installs
    sys.stdout.write(cleared(sys.stdin.read()))
