"""The pages are true: the result table is the committed one, and what they name exists."""

import re
import subprocess

import pytest

from conftest import ROOT
from paper.params import Params, read_yaml

README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])


def committed(name: str) -> str:
    """A file as git has it: a run of another profile, or on another machine, leaves other reports here."""
    shown = subprocess.run(["git", "show", f":{name}"], cwd=ROOT, capture_output=True, text=True)
    return shown.stdout if shown.returncode == 0 else pytest.skip("not a git repository")


def test_the_result_table_is_that_of_the_committed_reports():
    shown = re.search(r"<!-- results -->\n(.*?)\n<!-- /results -->", README, re.DOTALL)[1].strip()
    assert shown == committed("reports/tables/results.md").strip()


def test_committed_reports_are_those_of_the_demo():
    assert Params.load(ROOT / "params.yaml").report.title in committed("reports/index.html")


def test_ablations_change_keys_that_exist():
    changes = re.findall(r"-S '?([\w.-]+)=([^\s']+)", README)
    assert len(changes) >= 5
    for key, value in changes:
        section = read_yaml(ROOT / "params.yaml")
        for name in key.split("."):
            assert name in section, key
            section = section[name]
        assert str(section) != value, f"{key} is {value} already"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_files_that_exist(page):
    text = page.read_text()
    links = {page.parent / link for link in re.findall(r"\]\(([\w./-]+)[)#]", text)}
    scripts = re.findall(r"\b(?:benchmarks|examples|notebooks|profiles|src|tests)/[\w./-]+\.\w+", text)
    tree = re.findall(r"^([\w./]+) {2,}\S", text, re.MULTILINE) if page.name == "README.md" else []
    made_by_runs = {ROOT / "artifacts/", ROOT / "data/"}
    named = links | {ROOT / name for name in (*scripts, *tree)} - made_by_runs
    assert [str(path) for path in sorted(named) if not path.exists()] == []
