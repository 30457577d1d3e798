import base64
import html
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from conftest import ROOT
from paper.report.pages import write_page

PIXEL = base64.b64encode(b"a picture").decode() + "\n"


def written(folder, *cells, of_the_report: bool = False) -> str:
    """The page of a notebook between two others, or of the report."""
    pages = [{"name": name, "title": f"{name} & B", "file": name} for name in ("01_dataset", "02_own", "09_report")]
    pages[-1] |= {"title": "Shapes <&> \\1", "file": "index"}
    page = pages[-1 if of_the_report else 1]
    page["notebook"] = nbformat.v4.new_notebook(cells=list(cells))
    return write_page(page, pages, folder, "A title, version 1, by Somebody").read_text()


@pytest.mark.parametrize(("of_the_report", "heading"), [(True, "Shapes &lt;&amp;&gt; \\1"), (False, "02_own &amp; B")])
def test_a_page_has_its_title_its_neighbours_and_whose_it_is(tmp_path, of_the_report, heading):
    words = new_markdown_cell("# Report\n\nWords\n\n# Another"), new_markdown_cell("## The finding & more")
    text = written(tmp_path, *words, of_the_report=of_the_report)
    assert re.findall(r"<h1[^>]*>([^<]*)<", text) == [heading, "Another"]
    assert f"<title>{heading}</title>" in text
    assert "A title, version 1, by Somebody" in text
    assert (">The finding &amp; more</a>" in text.partition("<h1")[0]) == of_the_report  # the table of contents
    assert ('<li><a href="01_dataset.html">01_dataset &amp; B</a>' in text) == of_the_report
    neighbours = ['href="01_dataset.html" rel="prev"', 'href="index.html" rel="next"']
    assert [link in text for link in neighbours] == [not of_the_report] * 2
    assert ("</section>" in text.partition("The finding &amp; more</h2>")[0]) == of_the_report, "the first screen ends"


def test_a_notebooks_page_begins_with_its_finding_and_folds_code_that_shows_nothing(tmp_path):
    found = new_output("display_data", {"text/markdown": "**The finding**"})
    more = new_output("display_data", {"text/markdown": "More"})
    code = new_code_cell("classifier = 1", metadata={"tags": ["parameters"]}), new_code_cell("from paper import stage")
    text = written(tmp_path, new_markdown_cell("# A\nWords"), *code, new_code_cell("show()", outputs=[found, more]))
    places = [text.index(part) for part in ("<h1", "<strong>The finding", "Words", "<summary>Parameters", "<p>More")]
    assert places == sorted(places)
    assert (text.count("The finding"), text.count("<details>"), text.count('<div class="highlight')) == (1, 1, 3)


def test_a_picture_has_a_number_a_caption_a_text_and_links(tmp_path):
    about = {"alt": 'A "text"', "caption": "A <caption>.", "file": "figures/a.png", "width": 422}
    picture = new_output("display_data", {"image/png": PIXEL}, metadata={"image/png": about})
    plain = new_output("display_data", {"image/png": PIXEL})
    none = new_output("display_data", {"text/plain": "<Figure>"}, metadata={"image/png": {"alt": "Nothing <"}})
    cells = new_markdown_cell("# A"), new_code_cell("draw()", outputs=[picture, plain, none])
    text = written(tmp_path, *cells, of_the_report=True)
    assert """<img alt='A "text"' src="figures/a.png" width="422"/>""" in text
    assert '<b>Figure 1.</b> A &lt;caption&gt;. (<a href="figures/a.png">file</a>, <a href="09_report.ipynb">' in text
    assert re.search('alt="Figure 2 of the page.*<p>Nothing &lt;</p>', text, re.DOTALL), "none is without a text"
    assert f'src="data:image/png;base64,{PIXEL.strip()}" width="422"' in written(tmp_path, *cells)


def test_the_committed_report_has_few_tab_stops_and_no_picture_is_without_a_text():
    pages = {page.stem: page.read_text() for page in ROOT.glob("reports/*.html")}
    seen = re.sub("<details>.*?</details>", "<summary>", pages["index"], flags=re.DOTALL)
    assert 20 <= len(re.findall("<a [^>]*href|<summary|tabindex", seen)) <= 60
    for text in pages.values():
        assert len(re.findall("<img alt=['\"][^'\"]", text)) == text.count("<img ")


@pytest.mark.parametrize("address", ["javascript:alert(1)", "JAVA&#115;cript:alert(1)", "data:text/html,x"])
def test_a_link_leads_to_the_web_or_into_the_page_and_nothing_acts(tmp_path, address):
    words = f'[a]({address}) <a href="{address}" onclick="act()">b</a><embed src="{address}"> [c](https://a.org)[d](#e)'
    text = html.unescape(written(tmp_path, new_markdown_cell("# A"), new_markdown_cell(words)))
    assert not re.search("(href|src)=.?(java|data)|onclick", text, re.IGNORECASE)
    assert all(f'href="{kept}"' in text for kept in ("https://a.org", "#e"))
