"""The numbers of the committed report are what its records give."""

import re
import shutil

import pytest

from conftest import ROOT
from multishield.errors import UserError
from paper.pipeline.audit import audit


def test_a_changed_sentence_and_changed_records_are_found(project_root, capsys):
    shutil.copytree(ROOT / "reports", project_root / "reports")
    shutil.copy(ROOT / "params.yaml", project_root)
    audit()
    assert capsys.readouterr().out == "reports: 24 files and the page's sentences are what the records give\n"
    changes = {"index.html": ("images correctly", "images wrongly", "standard classifies")}
    changes |= {"records.csv": (r"(,joint,\d+,(\d+),\d+,\d+),\d+", r"\1,\2", "json")}  # joint breaks nothing
    for name, (old, new, named) in changes.items():
        text = re.sub(old, new, (file := project_root / "reports" / name).read_text(encoding="utf-8"))
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=f"the records in reports give something else than .*{named}"):
            audit()
