"""Self-contained pages of executed notebooks, readable without a network and without running."""

import html
import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
import nbformat
from nbconvert import HTMLExporter

from multishield.files import write_text


@dataclass(frozen=True)
class Page:
    """An executed notebook in the list of the index: its name, its title, and its page (None: it is the index)."""

    name: str
    title: str
    file: str | None


def title_of(notebook: nbformat.NotebookNode) -> str:
    """The first heading of a notebook."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found.group(1) if found else "Multi-Shield"


def write_page(notebook: nbformat.NotebookNode, path: Path, title: str, notebooks: list[Page] | None = None) -> Path:
    """An executed notebook as one HTML file: no script, nothing loaded from elsewhere.

    Args:
        notebooks: for the index, the report's own page: the list of all executed notebooks. Its code is left out, and
            figures that were saved as files are shown from there.
    """
    prompts = {"exclude_input_prompt": True, "exclude_output_prompt": True}
    exporter = HTMLExporter(template_name="basic", embed_images=True, exclude_input=notebooks is not None, **prompts)
    if notebooks:
        _show_saved_figures(notebook)
    body, _ = exporter.from_notebook_node(notebook)
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL)
    # What scrolls sideways must be reached by the keyboard, too.
    scroll = r'<div class="scroll" tabindex="0" role="region" aria-label="Table">\1</div>'
    body = re.sub(r"(<table\b.*?</table>)", scroll, body, flags=re.DOTALL)
    body = re.sub(r"(<h1[^>]*>)[^<]*", lambda h1: h1[1] + html.escape(title), body, count=1) if notebooks else body
    contents = re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', body) if notebooks else []
    template = jinja2.Template((Path(__file__).parent / "page.html.j2").read_text(encoding="utf-8"))
    listed = [Page(p.name, html.escape(p.title), p.file) for p in notebooks or []]
    words = {"title": html.escape(title), "body": body, "notebooks": listed, "contents": contents}
    return write_text(path, template.render(words) + "\n")


def _show_saved_figures(notebook: nbformat.NotebookNode) -> None:
    """Let nbconvert refer to the files of figures that have one (see `report.Picture`)."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            file = output.get("metadata", {}).get("image/png", {}).get("file")
            if file:
                output.metadata["filenames"] = {"image/png": file}
