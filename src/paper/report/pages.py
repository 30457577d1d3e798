"""Self-contained pages of executed notebooks, readable without a network and without running."""

import html
import re
from pathlib import Path

import jinja2
import nbformat
from nbconvert import HTMLExporter

from multishield.files import write_text

FOLDER = Path(__file__).parent
OPTIONS = {"template_name": "basic", "exclude_input_prompt": True, "exclude_output_prompt": True}
# One, because it compiles its templates once.
EXPORTER = HTMLExporter(raw_template=(FOLDER / "cells.html.j2").read_text(encoding="utf-8"), **OPTIONS)


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


def write_page(page: dict, pages: list[dict], folder: Path, about: str) -> Path:
    """Write an executed notebook as one HTML file, which runs no script and loads nothing from elsewhere.

    A page has "name", "title", "notebook", and "file" without its end. The last one, the report, shows no code.
    """
    of_the_report = page is pages[-1]
    EXPORTER.exclude_input = of_the_report
    seen = {key: [] for key in ("begun", "moved", "done", "figures")}  # the templates count in these
    body, _ = EXPORTER.from_notebook_node(page["notebook"], {"page": page, "of_the_report": of_the_report} | seen)
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL)
    body = re.sub(r"(<[a-z][^<>]*?)\son\w+\s*=\s*(\"[^\"]*\"|'[^']*'|[^\s>]+)", r"\1", body, flags=re.IGNORECASE)
    body = re.sub(r"(\b(?:href|src|action)\s*=\s*)(\"[^\"]*\"|'[^']*'|[^\s>]+)", _link, body, flags=re.IGNORECASE)
    # The keyboard must reach what scrolls sideways.
    scroll = r'<div class="scroll" tabindex="0" role="region" aria-label="Table">\1</div>'
    body = re.sub(r"(<table\b.*?</table>)", scroll, body, flags=re.DOTALL)
    contents = re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', body) if of_the_report else []
    body = re.sub(r'<a class="anchor-link".*?</a>', "", body)
    template = jinja2.Template((FOLDER / "page.html.j2").read_text(encoding="utf-8"), autoescape=True)
    text = template.render(page=page, pages=pages, body=body, contents=contents, about=about)
    return write_text(folder / f"{page['file']}.html", text + "\n")
