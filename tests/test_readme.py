"""The pages are true: the README's blocks run, its numbers are the committed ones, and what pages name exists."""

import re
import shlex
import subprocess
import tomllib

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
COMMANDS = [shlex.split(line, comments=True) for kind, block in BLOCKS if not kind for line in block.splitlines()]


def committed(name: str) -> str:
    """A file as git has it: a run of another profile, or on another machine, leaves other reports here."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    return subprocess.run(["git", "show", f":{name}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def keys(section: dict, before: str = "") -> dict[str, object]:
    """The values of a nested section by their dotted keys."""
    flat = {}
    for key, value in section.items():
        flat |= keys(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat


def test_the_readme_is_short():
    assert len(README.split()) <= 1000
    assert len(README.splitlines()) <= 150
    assert "What has not" in "\n".join(README.splitlines()[:25])


def test_the_table_is_that_of_the_committed_reports_and_the_finding_quotes_it():
    finding = README.split("**Finding.**")[1].split("<!-- results -->")[0]
    quoted, cells = re.findall(r"[\d.]+(?= %)", finding), re.findall(r"[\d.]+", TABLE)
    assert 1 <= len(quoted) <= 4
    assert set(quoted) <= set(cells)
    assert committed("reports/tables/summary.md").strip() == TABLE


def test_the_python_blocks_run_in_their_order(monkeypatch, tmp_path, capsys):
    # A small CLIP takes the place of the README's weights, which must be known.
    multishield.clip.check_pretrained("ViT-B-32-quickgelu", "openai")
    offline(monkeypatch, tmp_path)
    put_clip(tmp_path, "a/clip")
    load = multishield.clip.open_clip_model
    monkeypatch.setattr(multishield.clip, "open_clip_model", lambda model, tag: load("hf-hub:a/clip"))
    names, shown = {}, []
    for block in (block for kind, block in BLOCKS if kind == "python"):
        exec(block, names)
        shown.append(capsys.readouterr().out)
    assert "Robust accuracy" in shown[0]
    assert re.fullmatch(r"([\d.]+ % \[[\d.]+, [\d.]+\]\s){3}", shown[1])
    assert re.fullmatch(r"tensor\(\[[012, \s]+\]\)\s", shown[2])


def test_the_commands_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    spoken = [shlex.split(words) for words in re.findall(r"`((?:make|python|dvc|pip) [^`]+)`", README)]
    for command in filter(None, COMMANDS + spoken):
        match command:
            case ["python", "-m", "paper", *arguments]:
                assert parser().parse_args(arguments).command in arguments
            case ["python", script]:
                assert (ROOT / script).is_file()
            case ["make", target, *_]:
                assert target in targets
            case ["pip", "install", project]:
                assert project.removeprefix(".").strip("[]") in extras
            case ["dvc", "exp", verb, *_]:
                assert verb in ("run", "diff", "show")
            case _:
                assert command == [".", ".venv/bin/activate"]


def test_ablations_change_keys_that_exist_and_are_shown_in_few_columns():
    params = keys(read_yaml(ROOT / "params.yaml"))
    changes = [word.split("=", 1) for command in COMMANDS if "run" in command for word in command if "=" in word]
    assert len(changes) == 3
    for key, value in changes:
        assert key in params
        assert params[key] != yaml.safe_load(value), f"{key} is {value} already"
    (show,) = [command for command in COMMANDS if "show" in command]
    columns = ["Experiment", *keys(yaml.safe_load(committed("reports/headline.json"))), *params]
    shown = [column for column in columns if re.match(show[show.index("--keep") + 1], column)]
    assert 5 <= len(shown) <= 10
    assert {"Experiment", "multishield.tolerance"} <= set(shown)


def test_committed_reports_are_those_of_the_demo():
    assert Params.load(ROOT / "params.yaml").report.title in committed("reports/index.html")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_files_that_exist(page):
    text = page.read_text()
    links = {page.parent / link for link in re.findall(r"\]\(([\w./-]+)[)#]", text)}
    scripts = re.findall(r"\b(?:benchmarks|examples|notebooks|profiles|src|tests)/[\w./-]+\.\w+", text)
    tree = re.findall(r"^([\w./]+) {2,}\S", text, re.MULTILINE) if page.name == "map.md" else []
    made_by_runs = {ROOT / "artifacts/", ROOT / "data/"}
    named = links | {ROOT / name for name in (*scripts, *tree)} - made_by_runs
    assert [str(path) for path in sorted(named) if not path.exists()] == []
