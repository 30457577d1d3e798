"""The numbers of the committed report are what its records give."""

import shutil

import pytest

from conftest import ROOT
from multishield.errors import UserError
from paper.pipeline.audit import audit


def test_a_changed_record_a_changed_table_and_a_changed_sentence_are_found(project_root, capsys):
    shutil.copytree(ROOT / "reports", project_root / "reports")
    shutil.copy(ROOT / "params.yaml", project_root)
    audit()
    assert capsys.readouterr().out == "reports: 24 files and the page's sentences are what the records give\n"
    for name, old, new in (("records.csv", "joint", "paper"), ("index.html", "images correctly", "images wrongly")):
        file = project_root / "reports" / name
        file.write_text((text := file.read_text("utf-8")).replace(old, new, 1), encoding="utf-8")
        with pytest.raises(UserError, match=r"the records in reports give something else than .*; restore reports"):
            audit()
        file.write_text(text, encoding="utf-8")
