"""One set of versions: pyproject.toml, the locks and environment.yml are in step, and installed."""

import re
import subprocess
import tomllib
from importlib.metadata import version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(text) for text in PROJECT["dependencies"] + EXTRAS["paper"]]


def lines_of(lock: str) -> set[str]:
    return {line for line in (ROOT / lock).read_text().splitlines() if line and not line.startswith("#")}


def pinned(lock: str) -> dict[str, Requirement]:
    """The lines of a lock that hold for this Python and this system, by name."""
    wanted = map(Requirement, lines_of(lock))
    return {canonicalize_name(r.name): r for r in wanted if r.marker is None or r.marker.evaluate()}


def test_the_lock_has_one_exact_version_of_everything_that_the_project_asks_for():
    lock = pinned("requirements.lock")
    assert all(re.fullmatch(r"==[^,*]+", str(r.specifier)) for r in lock.values())
    for wanted in (*DIRECT, *map(Requirement, EXTRAS["clip"] + EXTRAS["test"])):
        (pin,) = lock[canonicalize_name(wanted.name)].specifier
        assert wanted.specifier.contains(pin.version), wanted


def test_what_is_in_the_numbers_has_the_same_version_under_every_python():
    for name in ("numpy", "pandas", "pillow", "pyautoattack", "scipy", "timm", "torch", "torchvision"):
        assert len([line for line in lines_of("requirements.lock") if line.startswith(f"{name}==")]) == 1, name


def test_the_lock_of_the_cluster_adds_ray_and_replaces_nothing():
    plain, more = lines_of("requirements.lock"), lines_of("requirements-cluster.lock")
    assert plain <= more
    assert {Requirement(line).name for line in more - plain} == {"msgpack", "protobuf", "ray"}
    assert EXTRAS["cluster"] == [line for line in more if line.startswith("ray==")]


def test_this_environment_is_the_locked_one():
    installed = {name: f"=={version(name)}" for name in pinned("requirements.lock")}
    assert installed == {name: str(r.specifier) for name, r in pinned("requirements.lock").items()}


def test_conda_users_get_the_same():
    environment = YAML(typ="safe").load((ROOT / "environment.yml").read_text())["dependencies"]
    assert "python=3.11" in environment
    *lines, lock_line, project_line = environment[-1]["pip"]
    assert (lock_line, project_line) == ("--requirement requirements.lock", "--editable .")
    lock, direct = pinned("requirements.lock"), {canonicalize_name(r.name) for r in DIRECT}
    named = {canonicalize_name(r.name): r.specifier for r in map(Requirement, lines)}
    assert named == {name: lock[name].specifier for name in direct}


def test_nothing_committed_is_large_or_tied_to_a_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for path in filter(lambda path: path.is_file(), (ROOT / name for name in listed.stdout.splitlines())):
        assert path.stat().st_size <= (2e6 if path.relative_to(ROOT).parts[0] in ("reports", "results") else 1e6), path
        if path.suffix != ".png" and path.name != "test_environment.py":
            assert not re.search(r"(/home/|/root/|/Users/)\w", path.read_text()), path
