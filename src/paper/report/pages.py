"""Self-contained pages of executed notebooks, readable without a network and without running."""

import html
import re
from itertools import groupby
from pathlib import Path

import jinja2
import nbformat
from nbconvert import HTMLExporter

from multishield.files import write_text

FOLDER = Path(__file__).parent
OPTIONS = {"template_name": "basic", "exclude_input_prompt": True, "exclude_output_prompt": True}
CELLS = (FOLDER / "cells.html.j2").read_text(encoding="utf-8")
EXPORTER = HTMLExporter(raw_template=CELLS, **OPTIONS)  # one, for it compiles its templates once


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


def _prepared(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with its first generated sentence below its title, and code that shows nothing in one cell each."""
    cells = []
    for hidden, group in groupby(notebook.cells, lambda cell: cell.cell_type == "code" and not cell.get("outputs")):
        first, *others = group
        cells += [first] + others * (not hidden)
        first.source = "\n\n".join([first.source, *(cell.source for cell in others * hidden)])
    for outputs in (cell.get("outputs", []) for cell in cells):
        if found := [output for output in outputs if "text/markdown" in output.get("data", {})]:
            heading, _, words = cells[0].source.partition("\n")
            cells[0].source = f"{heading}\n\n{found[0].data['text/markdown']}\n\n{words}"
            outputs.remove(found[0])
            break
    return nbformat.v4.new_notebook(cells=cells)


def write_page(
    notebook: nbformat.NotebookNode, path: Path, title: str, name: str, pages: list[dict], about: str
) -> Path:
    """Write an executed notebook as one HTML file, which runs no script and loads nothing from elsewhere.

    `name` is the notebook's, and `pages` are all pages: "name", "title", and "file" without its end. The last one is
    the report: it shows no code, its figures are the saved files, and it lists the others. `about` says whose it is.
    """
    of_the_report, place = name == pages[-1]["name"], [page["name"] for page in pages].index(name)
    EXPORTER.exclude_input = of_the_report
    resources = {"of_the_report": of_the_report, "figures": [], "begun": [], "title": title, "name": name}
    body, _ = EXPORTER.from_notebook_node(notebook if of_the_report else _prepared(notebook), resources)
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL)
    body = re.sub(r"(<[a-z][^<>]*?)\son\w+\s*=\s*(\"[^\"]*\"|'[^']*'|[^\s>]+)", r"\1", body, flags=re.IGNORECASE)
    body = re.sub(r"(\b(?:href|src|action)\s*=\s*)(\"[^\"]*\"|'[^']*'|[^\s>]+)", _link, body, flags=re.IGNORECASE)
    # The keyboard must reach what scrolls sideways.
    scroll = r'<div class="scroll" tabindex="0" role="region" aria-label="Table">\1</div>'
    body = re.sub(r"(<table\b.*?</table>)", scroll, body, flags=re.DOTALL)
    contents = re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', body) if of_the_report else []
    body = re.sub(r'<a class="anchor-link".*?</a>', "", body)
    if of_the_report:
        body = re.sub(r"(<h1[^>]*>)[^<]*", lambda h1: h1[1] + html.escape(title), body, count=1)
    around = {"before": pages[place - 1] if place else None, "after": pages[place + 1] if not of_the_report else None}
    template = jinja2.Template((FOLDER / "page.html.j2").read_text(encoding="utf-8"), autoescape=True)
    shown = {"body": body, "contents": contents, "pages": pages[:-1] * of_the_report, "about": about} | around
    return write_text(path, template.render(title=title, name=name, **shown) + "\n")
