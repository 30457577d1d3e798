"""Fixtures: the project at small size, in a copy; real files where the environment names them."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

from paper.pipeline import arithmetic

# Before torch is imported: tests compute the same on every machine, each process with one thread. Large networks are
# faster with native arithmetic, and `make test-all` asks for it.
arithmetic.choose(os.environ.get("MULTISHIELD_TEST_ARITHMETIC", "portable"))
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from filelock import FileLock
from ruamel.yaml import YAML

from multishield.progress import PROGRESS
from paper.data import shapes
from paper.naming import STAGES, runs
from paper.params import DEFAULTS, Params
from paper.pipeline.notebooks import code_cells, read_notebook, source_path

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items):
    """Skip tests that need a GPU or real files, with the reason, where there are none."""
    needs = {"cifar10": ("MULTISHIELD_CIFAR10", "MULTISHIELD_WEIGHTS"), "imagenet": ("MULTISHIELD_IMAGENET",)}
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no GPU here"))
        for marker, variables in needs.items():
            missing = [v for v in variables if not os.environ.get(v)]
            if item.get_closest_marker(marker) and missing:
                item.add_marker(pytest.mark.skip(reason=f"{missing[0]} is not set"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def edit_params(project: Path, changes: dict) -> None:
    """Set dotted keys of a project's params.yaml, comments kept."""
    yaml = YAML()
    path = project / "params.yaml"
    values = yaml.load(path.read_text())
    for key, value in changes.items():
        *parents, last = key.split(".")
        section = values
        for parent in parents:
            section = section[parent]
        section[last] = value
    with path.open("w") as stream:
        yaml.dump(values, stream)


# The attacks and the report at their smallest, for every project that a test runs.
CHEAP = {"baseline.attacks": ["apgd-ce"], "adaptive.paper.steps": 5, "adaptive.joint.steps": 4, "report.examples": 1}
CHEAP |= {"adaptive.components.targets": 1, "adaptive.components.steps": 5, "adaptive.denial.steps": 5}
CHEAP |= {"adaptive.square.queries": 10, "adaptive.sanity.images": 4, "comparison.rejection": 0.1}
CHEAP |= {"comparison.attack.targets": 1, "comparison.attack.steps": 5, "studies.images": 4, "studies.sigma": [0.1]}
CHEAP |= {"dataset.calibration": 0}
CHEAP |= {"studies.prompts": {"one": {"templates": ["a {}"]}}, "studies.tolerance": [0.01], "studies.eps": ["8/255"]}
# Native arithmetic, as the tests' own process: two with two threads each would wait for each other.
SMALL = CHEAP | {"arithmetic": "native", "classifiers": ["robust"], "dataset.train": 600, "dataset.validation": 60}
SMALL |= {"dataset.calibration": 30}
SMALL |= {"dataset.evaluate": 20, "training.robust.epochs": 1, "training.robust.validation_steps": 2}
SMALL |= {"alignment.epochs": 1, "baseline.batch_size": 10}


def copy_project(target: Path) -> Path:
    """Copy what git would commit, but for reports and results, into a new repository with the demo's parameters."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    )
    for name in listed.stdout.decode().splitlines():
        if (ROOT / name).is_file() and not name.startswith(("reports/", "results/")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    shutil.copy(DEFAULTS, target / "params.yaml")
    subprocess.run(["git", "init", "--quiet"], cwd=target, check=True)
    return target


@pytest.fixture(scope="session")
def rendered(tmp_path_factory) -> Path:
    """The demo's raw images, rendered once for all processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "rendered" / "shapes"
    with FileLock(folder.parent.with_suffix(".lock")):
        if not folder.exists():
            shapes.materialise(folder)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory, rendered) -> Path:
    """A copy of the project at small size, with raw images; no stage has run."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    shutil.copytree(rendered, folder / "data" / "shapes")
    edit_params(folder, SMALL)
    return folder


@pytest.fixture
def project_root(tmp_path, monkeypatch) -> Path:
    """An empty project, which is the working directory; papermill would fill in the braces of its name."""
    (root := tmp_path / "a {b} c").mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        (root / name).touch()
    monkeypatch.chdir(root)
    return root


def run(project: Path, *command: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a command of this environment in a project; returns code, stdout and stderr as text."""
    binaries = Path(sys.executable).parent
    variables = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", **environment}
    return subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True)


def run_notebooks(project: Path, until: str = "report") -> None:
    """The cells of all notebooks up to a stage's, in this process: the numbers of `dvc repro` without its starts."""
    mpl.use("Agg")
    with contextlib.chdir(project), mock.patch.dict(os.environ, {PROGRESS: "2"}):
        for stage, item in runs(Params.load().classifiers):
            if STAGES.index(stage) > STAGES.index(until):
                continue
            scope: dict = {}
            for cell in code_cells(read_notebook(source_path(stage))):
                exec(compile(cell.source, f"{stage}.ipynb", "exec"), scope)
                if "parameters" in cell.metadata.get("tags", []):
                    scope["study" if stage == "studies" else "classifier"] = item
            plt.close("all")
