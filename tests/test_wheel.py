"""The library on its own: what its wheel holds and needs, and that it works beside another torch."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from conftest import ROOT, copy_project

ANOTHER_TORCH = "2.13.0"  # than that of requirements.lock
OF_THE_REPRODUCTION = ("dvc", "IPython", "jupyterlab", "open_clip", "papermill", "pydantic", "timm", "torchvision")
EXAMPLES = ROOT / "examples"
ALONE = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name not in ("own.py", "threshold.py", "export.py"))
# An example as it is, but on its first images alone.
SMALL = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
import own
every = own.images_and_labels
own.images_and_labels = lambda split, count: every(split, min(count, 8) if split == "test" else count)
runpy.run_path(sys.argv[2], run_name="__main__")
"""
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_project(folder / "source")
    done = subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("multishield-*.whl"))


def needs(of: Distribution) -> set[str]:
    """The names of the distributions that one needs on this machine, without its extras, and all that they need."""
    wanted = map(Requirement, of.requires or ())
    names = {r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})}
    return names.union(*(needs(distribution(name)) for name in names))


def python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def site_of(folder: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory) -> Path:
    """The Python of an environment that holds the wheel, and of this environment the packages that it says it needs."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site_of(folder))
    (metadata,) = site_of(folder).glob("*.dist-info")
    for needed in map(distribution, needs(Distribution.at(metadata))):
        for name in {path.parts[0] for path in needed.files} - {"..", "__pycache__"}:
            link = site_of(folder) / name
            if not link.exists():  # packages of one namespace share a folder
                link.symlink_to(needed.locate_file(name))
    return python_of(folder)


def said(python: Path, *arguments: str, folder: Path) -> str:
    options = {"env": {"OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True}
    done = subprocess.run([python, *arguments], cwd=folder, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_library_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"multishield"}
    files = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "multishield").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == files
    assert not [name for name in names if "entry_points" in name]


def test_the_environment_lacks_the_reproduction(bare, tmp_path):
    names = ("paper", *OF_THE_REPRODUCTION)
    code = f"from importlib.util import find_spec; print([n for n in {names} if find_spec(n)])"
    assert said(bare, "-c", code, folder=tmp_path) == "[]\n"


@pytest.mark.parametrize("example", ALONE)
def test_the_examples_run_with_the_wheel_and_what_it_needs(bare, tmp_path, example):
    assert "| worst case" in said(bare, "-c", SMALL, str(EXAMPLES), str(EXAMPLES / example), folder=tmp_path)


def test_importing_the_package_imports_no_torch(bare, tmp_path):
    code = "import sys, multishield; print(multishield.__version__, 'torch' in sys.modules)"
    assert said(bare, "-c", code, folder=tmp_path).split() == ["0.2.0", "False"]


def test_evaluate_imports_the_library_and_nothing_slow(bare, tmp_path):
    code = "import sys; from multishield import evaluate; print(*sys.modules)"
    modules = said(bare, "-c", code, folder=tmp_path).split()
    assert {m for m in modules if m.startswith("multishield.")} >= {"multishield.evaluation", "multishield.portfolio"}
    assert not {"matplotlib", "multishield.clip", "ray"} & set(modules)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_examples_run_beside_another_torch(wheel, tmp_path):
    venv.create(tmp_path / "other", with_pip=True)
    python = python_of(tmp_path / "other")
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel), f"torch=={ANOTHER_TORCH}"]
    subprocess.run([python, *install], check=True)
    version = said(python, "-c", "import torch; print(torch.__version__)", folder=tmp_path)
    assert version.startswith(ANOTHER_TORCH)
    for example in ALONE:
        assert "| worst case" in said(python, str(EXAMPLES / example), folder=tmp_path)
