"""Self-contained HTML: executed notebooks and the index page, readable without a network and without running."""

import html
import re
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from multishield.storage.files import write_text

_CSS = """
:root { --ink: #1f2430; --soft: #5b6472; --line: #dde1e7; --paper: #ffffff; --shade: #f6f7f9; --link: #1d5fa8; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--paper); font: 16px/1.6 system-ui, "Segoe UI", sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
nav { border-bottom: 1px solid var(--line); padding: .7rem 1.5rem; font-size: .9rem; }
nav a { margin-right: 1rem; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
h1 { font-size: 1.9rem; line-height: 1.25; margin: 0 0 .6rem; } h2 { font-size: 1.3rem; margin: 2.2rem 0 .5rem; }
p { max-width: 46rem; } img { max-width: 100%; height: auto; }
code, pre { font: .85rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
pre { margin: 0; overflow-x: auto; }
.highlight { background: var(--shade); border: 1px solid var(--line); border-radius: 4px; padding: .6rem .8rem; }
.highlight { margin: .8rem 0 .4rem; }
.jp-InputPrompt, .jp-OutputPrompt, .prompt, .anchor-link { display: none; }
.output_stderr, .jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"] { background: #fdf1f0; }
table { border-collapse: collapse; font-size: .8rem; margin: .8rem 0; display: block; overflow-x: auto; }
th, td { padding: .3rem .42rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody th, td:first-child, td:first-child + td, thead th:first-child, thead th:nth-child(2) { text-align: left; }
thead th { white-space: normal; }
.words th, .words td { text-align: left; white-space: normal; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; }
.note { border-left: 3px solid #c98a1b; background: #fdf8ee; padding: .6rem 1rem; max-width: 46rem; }
figure { margin: 1.5rem 0; } figcaption { color: var(--soft); font-size: .9rem; max-width: 46rem; }
"""


def page(title: str, body: str, navigation: str = "") -> str:
    """A whole HTML page with its style inside."""
    header = f"<nav>{navigation}</nav>\n" if navigation else ""
    style = _CSS + HtmlFormatter(style="friendly").get_style_defs(".highlight")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{style}</style>\n</head>\n<body>\n{header}<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def title_of(notebook: nbformat.NotebookNode) -> str:
    """The first heading of a notebook."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found.group(1) if found else "Multi-Shield"


def write_notebook_page(notebook: nbformat.NotebookNode, path: Path) -> Path:
    """An executed notebook as one HTML file: figures inside, no script, nothing loaded from elsewhere."""
    exporter = HTMLExporter(template_name="basic", embed_images=True)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    body, _ = exporter.from_notebook_node(notebook)
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL)
    title = title_of(notebook)
    return write_text(path, page(title, body, f'<a href="index.html">Report</a> {html.escape(title)}'))
