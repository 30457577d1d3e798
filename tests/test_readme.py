"""The README says what is so."""

import re
import subprocess

import pytest

from conftest import ROOT
from paper.params import Params, read_yaml

README = (ROOT / "README.md").read_text()


def committed(name: str) -> str:
    """A file as git has it: a run of another profile, or on another machine, leaves other reports here."""
    shown = subprocess.run(["git", "show", f":{name}"], cwd=ROOT, capture_output=True, text=True)
    return shown.stdout if shown.returncode == 0 else pytest.skip("not a git repository")


def test_the_result_table_is_that_of_the_committed_reports():
    shown = re.search(r"<!-- results -->\n(.*?)\n<!-- /results -->", README, re.DOTALL)[1].strip()
    assert shown == committed("reports/tables/results.md").strip()


def test_committed_reports_are_those_of_the_demo():
    title = Params.load(ROOT / "profiles" / "demo.yaml").report.title
    assert title in committed("reports/index.html")


def test_ablations_change_keys_that_exist():
    changes = re.findall(r"-S '?([\w.-]+)=([^\s']+)", README)
    assert len(changes) >= 5
    for key, value in changes:
        section = read_yaml(ROOT / "profiles" / "demo.yaml")
        for part in key.split("."):
            assert part in section, key
            section = section[part]
        assert str(section) != value, f"{key} is {value} already"


@pytest.mark.parametrize("path", re.findall(r"^([\w./]+) {2,}\S", README[README.find("## The tree") :], re.MULTILINE))
def test_the_tree_names_what_exists(path):
    made_by_runs = {"artifacts/", "data/"}
    assert path in made_by_runs or (ROOT / path).exists()
