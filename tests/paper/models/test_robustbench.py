"""RobustBench's models: a sentence where the package is missing, and all of them in an environment that has it."""

import importlib.util
import os
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from conftest import ROOT, run
from multishield.errors import UserError
from paper.models import pretrained
from paper.models.model_zoo import ENTRIES
from paper.params.sections import FromZoo

# Packages that the extra adds to this environment.
ADDED = {"robustbench", "torchdiffeq", "geotorch", "gdown", "pysocks"}


@pytest.mark.skipif(importlib.util.find_spec("robustbench") is not None, reason="robustbench is installed here")
def test_without_the_package_a_sentence_says_how_to_install_it():
    with pytest.raises(UserError, match=r"No module named 'robustbench'.*requirements-robustbench.lock`$"):
        pretrained.load(FromZoo(source="model_zoo", name="Standard"), 10, "training.net")


@pytest.fixture(scope="module")
def overlay(tmp_path_factory):
    """A folder with the packages that it adds, for PYTHONPATH: the rest of the environment stays as it is."""
    base, extra = (set((ROOT / f"requirements{name}.lock").read_text().splitlines()) for name in ("", "-robustbench"))
    pins = [line for line in extra - base if line and not line.startswith("#")]
    assert {Requirement(line).name for line in pins} == ADDED, "nothing that is installed already is replaced"
    folder = tmp_path_factory.mktemp("overlay")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "--no-deps", *pins]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install the extra here: {done.stderr.strip()[-200:]}")
    return folder


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_model_of_robustbench_runs_through_our_code(overlay, project_root):
    script = ROOT / "tests" / "paper" / "models" / "robustbench_models.py"
    done = run(project_root, sys.executable, str(script), PYTHONPATH=os.pathsep.join([str(overlay), str(ROOT / "src")]))
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = [name for name, entry in ENTRIES.items() if entry.source == "robustbench"]
    assert done.stdout.splitlines() == wanted
