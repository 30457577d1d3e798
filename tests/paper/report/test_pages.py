import html
import re

import nbformat
import pytest

from paper.report.pages import write_page


@pytest.mark.parametrize(("of_the_report", "heading"), [(True, "Shapes &lt;&amp;&gt; \\1"), (False, "Report")])
def test_the_report_is_headed_by_its_own_title_and_other_pages_by_their_notebooks(tmp_path, of_the_report, heading):
    words = nbformat.v4.new_markdown_cell("# Report\n\n# Another\n\n## The finding & more")
    notebook = nbformat.v4.new_notebook(cells=[words])
    pages = [{"name": "01_dataset", "title": "A & B", "file": "01_dataset"}] if of_the_report else None
    text = write_page(notebook, tmp_path / "page.html", "Shapes <&> \\1", pages).read_text()
    assert re.findall(r"<h1[^>]*>([^<]*)<", text) == [heading, "Another"]
    assert "<title>Shapes &lt;&amp;&gt; \\1</title>" in text
    assert (">The finding &amp; more</a>" in text.partition("<h1")[0]) == of_the_report  # the table of contents
    assert ('<a href="01_dataset.html">A &amp; B</a>' in text) == of_the_report


@pytest.mark.parametrize("address", ["javascript:alert(1)", "JAVA&#115;cript:alert(1)", "data:text/html,x"])
def test_a_link_leads_to_the_web_or_into_the_page_and_nothing_acts(tmp_path, address):
    words = (
        f'[a]({address}) <a href="{address}" onclick="act()">b</a><embed src="{address}"> [c](https://a.org) [d](#e)'
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(words)])
    text = html.unescape(write_page(notebook, tmp_path / "page.html", "A page").read_text())
    assert not re.search("(href|src)=.?(java|data)|onclick", text, re.IGNORECASE)
    assert all(f'href="{kept}"' in text for kept in ("https://a.org", "#e"))
