"""One set of versions: pyproject.toml, requirements.lock and environment.yml are in step, and installed."""

import re
import subprocess
import tomllib
from importlib.metadata import version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = {
    canonicalize_name(requirement.name): requirement
    for requirement in (
        Requirement(line)
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if line and not line.startswith("#")
    )
}


def test_the_lock_satisfies_what_the_project_asks_for():
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]:
        wanted = Requirement(text)
        locked = LOCK[canonicalize_name(wanted.name)]
        (pin,) = locked.specifier
        assert pin.operator == "=="
        assert wanted.specifier.contains(pin.version), text


def test_the_lock_of_the_cluster_adds_ray_and_replaces_nothing():
    lines = {
        name: set((ROOT / name).read_text().splitlines()) for name in ("requirements.lock", "requirements-cluster.lock")
    }
    plain, more = ({line for line in found if not line.startswith("#")} for found in lines.values())
    assert plain <= more
    assert {Requirement(line).name for line in more - plain} == {"msgpack", "protobuf", "ray"}
    assert PROJECT["optional-dependencies"]["cluster"] == [line for line in more if line.startswith("ray==")]


def test_every_line_of_the_lock_is_an_exact_version():
    assert all(len(r.specifier) == 1 and next(iter(r.specifier)).operator == "==" for r in LOCK.values())


def test_this_environment_is_the_locked_one():
    wrong = {}
    for name, requirement in LOCK.items():
        if requirement.marker is None or requirement.marker.evaluate():
            (pin,) = requirement.specifier
            if version(name) != pin.version:
                wrong[name] = (version(name), pin.version)
    assert wrong == {}


def test_conda_users_get_the_same():
    environment = YAML(typ="safe").load((ROOT / "environment.yml").read_text())
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert "--requirement requirements.lock" in pip
    assert "python=3.11" in environment["dependencies"]
    assert "3.11" in PROJECT["requires-python"]
    named = {
        canonicalize_name(r.name): r.specifier for r in (Requirement(line) for line in pip if not line.startswith("-"))
    }
    direct = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert named == {name: LOCK[name].specifier for name in direct}


def test_nothing_committed_is_large_or_tied_to_a_machine():
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in files:
        path = ROOT / name
        if not path.is_file():
            continue
        assert path.stat().st_size <= 1_000_000 or name.startswith("reports/"), name
        if path.suffix not in {".png"} and name != "tests/test_environment.py":
            assert not re.search(r"(/home/|/root/|/Users/)\w", path.read_text()), name
