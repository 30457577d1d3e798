import re

import nbformat
import pytest

from paper.report.pages import Page, write_page


@pytest.mark.parametrize(("of_the_report", "heading"), [(True, "Shapes &lt;&amp;&gt; \\1"), (False, "Report")])
def test_the_report_is_headed_by_its_own_title_and_other_pages_by_their_notebooks(tmp_path, of_the_report, heading):
    words = nbformat.v4.new_markdown_cell("# Report\n\n# Another\n\n## The finding")
    notebook = nbformat.v4.new_notebook(cells=[words])
    pages = [Page("09_report", "Report", None)] if of_the_report else None
    text = write_page(notebook, tmp_path / "page.html", "Shapes <&> \\1", pages).read_text()
    assert re.findall(r"<h1[^>]*>([^<]*)<", text) == [heading, "Another"]
    assert ('href="#The-finding"' in text.partition("<h1")[0]) == of_the_report  # the table of contents
