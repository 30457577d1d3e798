"""The README says what is so."""

import re

import pytest

from conftest import ROOT
from multishield.params import Params, read_yaml

README = (ROOT / "README.md").read_text()
# After `make reproduce PROFILE=NAME` params.yaml and reports/ are that profile's, until git restores them.
of_the_demo = pytest.mark.skipif(
    (ROOT / "params.yaml").read_text() != (ROOT / "profiles" / "demo.yaml").read_text(),
    reason="reports/ are not the demo's: params.yaml is not",
)


@of_the_demo
def test_the_result_table_is_that_of_the_committed_reports():
    table = (ROOT / "reports" / "tables" / "results.md").read_text().strip()
    shown = re.search(r"<!-- results -->\n(.*?)\n<!-- /results -->", README, re.DOTALL)[1].strip()
    assert shown == table


@of_the_demo
def test_committed_reports_are_those_of_the_demo():
    assert Params.load(ROOT / "profiles" / "demo.yaml").report.title in (ROOT / "reports" / "index.html").read_text()


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
