"""The pages are true: the README's blocks run, its numbers are the committed ones, and what pages name exists."""

import json
import re
import shlex
import subprocess

import pandas as pd
import pytest
import yaml

import multishield.clip
from conftest import ROOT
from hub import offline, put_clip
from paper.__main__ import parser
from paper.params import Params, read_yaml

README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
TABLE = re.search(r"<!-- results -->\n(.*?)\n<!-- /results -->", README, re.DOTALL)[1].strip()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
LINES = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]
COMMANDS = [shlex.split(line, comments=True) for line in LINES + re.findall(r"\| `(.+?)` \|", README)]


def committed(name: str) -> str:
    """A file as git has it: a run of another profile, or on another machine, leaves other reports here."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    return subprocess.run(["git", "show", f":{name}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_readme_is_short_and_its_numbers_are_the_committed_ones():
    assert len(README.split()) <= 1000
    assert len(README.splitlines()) <= 150
    assert "What has not" in "".join(README.splitlines()[:25])
    beside = {"**Finding**": "results/bloodcells-cpu/tables/summary.md", "Cells are": "reports/tables/summary.md"}
    assert committed(beside["**Finding**"]).strip() == TABLE
    for start, file in (beside | {"Over five": "reports/seeds.md"}).items():
        quoted = re.findall(r"\d+\.\d", re.split(r"\n\n|Over five", README.split(start)[1])[0])
        assert 1 <= len(quoted) <= 4, file
        assert set(quoted) <= set(re.findall(r"\d+\.\d", committed(file)))
    assert Params.load(ROOT / "params.yaml").report.title in committed("reports/index.html")


def test_the_python_blocks_run_in_their_order(monkeypatch, tmp_path, capsys):
    load, names, shown = multishield.clip.open_clip_model, {}, []
    multishield.clip.check_pretrained("ViT-B-32-quickgelu", "openai")  # the weights that a small CLIP replaces
    offline(monkeypatch, tmp_path)
    put_clip(tmp_path, "a/clip")
    monkeypatch.setattr(multishield.clip, "open_clip_model", lambda model, tag: load("hf-hub:a/clip"))
    for block in (block for kind, block in BLOCKS if kind == "python"):
        exec(block, names)
        shown.append(capsys.readouterr().out)
    assert "Robust accuracy" in shown[0]
    assert re.fullmatch(r"([\d.]+ % \[[\d.]+, [\d.]+\]\s){3}", shown[1])
    assert re.fullmatch(r"\[('(cat|dog|rejected)'[, \]]+){16}\s", shown[2])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_exists(command):
    match command:
        case ["python", "-m", "paper", name, *arguments]:
            assert parser().parse_args([name, *arguments]).command == name
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["pip", "install", project]:
            assert f"\n{project.strip('.[]')} = [" in (ROOT / "pyproject.toml").read_text()
        case _:
            verbs = [["dvc", "exp", verb] for verb in ("run", "diff", "show")]
            assert command[:3] in verbs or command[0] in (".", "python")


def test_ablations_change_keys_that_exist_and_are_shown_in_few_columns():
    params = pd.json_normalize(read_yaml(ROOT / "params.yaml")).iloc[0].to_dict()
    changes = [word.split("=", 1) for command in COMMANDS if "-S" in command for word in command if "." in word]
    for key, value in changes:
        assert params[key] != yaml.safe_load(value), f"{key} is {value} already"
    (show,) = (command for command in COMMANDS if "show" in command)
    columns = ["Experiment", *pd.json_normalize(json.loads(committed("reports/headline.json"))), *params]
    shown = [column for column in columns if re.match(show[-1], column)]
    assert {"Experiment", "robust.robust_worst_case", changes[0][0], changes[1][0]} <= set(shown)
    assert len(shown) <= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_files_that_exist(page):
    text = page.read_text()
    links = {page.parent / link for link in re.findall(r"\]\(([\w./-]+)[)#]", text)}
    scripts = re.findall(r"\b(?:benchmarks|examples|notebooks|profiles|src|tests)/[\w./-]+\.\w+", text)
    tree = re.findall(r"^([\w./]+) {2,}\S", text, re.MULTILINE) if page.name == "map.md" else []
    named = links | {ROOT / name for name in (*scripts, *tree)} - {ROOT / "artifacts/", ROOT / "data/"}  # made by runs
    assert [str(path) for path in sorted(named) if not path.exists()] == []
