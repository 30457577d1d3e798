"""Self-contained pages of executed notebooks, readable without a network and without running."""

import html
import re
from pathlib import Path

import jinja2
import nbformat
from nbconvert import HTMLExporter

from multishield.files import write_text

PROMPTS = {"exclude_input_prompt": True, "exclude_output_prompt": True}
EXPORTER = HTMLExporter(template_name="basic", embed_images=True, **PROMPTS)  # one, for it compiles its templates once


def title_of(notebook: nbformat.NotebookNode) -> str:
    """The first heading of a notebook."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading = re.search(r"^# (.+)$", text, re.MULTILINE)
    return heading[1] if heading else "Multi-Shield"


def _link(attribute: re.Match) -> str:
    """A link as it is if it leads into the reports or to the web, or is an image; any other, as a script, to "#"."""
    address = re.sub(r"[\x00-\x20]", "", html.unescape(attribute[2].strip("\"'")))
    scheme = re.match(r"[a-z][\w+.-]*(?=:)", address, re.IGNORECASE)
    sound = not scheme or scheme[0].lower() in ("http", "https", "mailto") or address.startswith("data:image/")
    return attribute[0] if sound else f'{attribute[1]}"#"'


def write_page(notebook: nbformat.NotebookNode, path: Path, title: str, notebooks: list[dict] | None = None) -> Path:
    """Write an executed notebook as one HTML file, which runs no script and loads nothing from elsewhere.

    The index alone has `notebooks`, the list of all: their "name", "title", and "file", the page, which is None for the
    index itself. It shows no code, and its figures are the saved files.
    """
    EXPORTER.exclude_input = notebooks is not None
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if notebooks and (file := output.get("metadata", {}).get("image/png", {}).get("file")):
            output.metadata["filenames"] = {"image/png": file}  # nbconvert then refers to it; see `report.Picture`
    body, _ = EXPORTER.from_notebook_node(notebook)
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL)
    body = re.sub(r"(<[a-z][^<>]*?)\son\w+\s*=\s*(\"[^\"]*\"|'[^']*'|[^\s>]+)", r"\1", body, flags=re.IGNORECASE)
    body = re.sub(r"(\b(?:href|src|action)\s*=\s*)(\"[^\"]*\"|'[^']*'|[^\s>]+)", _link, body, flags=re.IGNORECASE)
    # The keyboard must reach what scrolls sideways.
    scroll = r'<div class="scroll" tabindex="0" role="region" aria-label="Table">\1</div>'
    body = re.sub(r"(<table\b.*?</table>)", scroll, body, flags=re.DOTALL)
    contents = []
    if notebooks:
        body = re.sub(r"(<h1[^>]*>)[^<]*", lambda h1: h1[1] + html.escape(title), body, count=1)
        contents = re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', body)
    template = jinja2.Template((Path(__file__).parent / "page.html.j2").read_text(encoding="utf-8"), autoescape=True)
    return write_text(path, template.render(title=title, body=body, notebooks=notebooks, contents=contents) + "\n")
