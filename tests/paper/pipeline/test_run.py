"""The runner around a notebook: what it sets up, and what it says when something under it gives way."""

import os
import platform
import re
import shutil
import stat
import sys

import nbformat
import pytest

from conftest import copy_project, run
from multishield.errors import UserError
from multishield.files import read_json, write_json
from paper.params import DEFAULTS, read_yaml
from paper.pipeline import arithmetic
from paper.pipeline.notebooks import read_notebook, source_path, write_notebook


@pytest.fixture
def stage(project_root):
    """A project whose dataset notebook has these cells."""
    shutil.copy(DEFAULTS, project_root / "params.yaml")

    def with_cells(*codes: str, **environment: str):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in codes])
        write_notebook(notebook, source_path("dataset"))
        return run(project_root, sys.executable, "-m", "paper", "run", "dataset", **environment)

    return with_cells


def outputs(project) -> str:
    notebook = read_notebook(project / "artifacts" / "notebooks" / "01_dataset.ipynb")
    return "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))


def test_a_killed_kernel_is_one_sentence_and_its_unfinished_work_stays(stage, project_root):
    work = project_root / ".multishield" / "resume" / "01_dataset" / "work"
    code = f"import os, pathlib, signal; pathlib.Path({str(work)!r}).mkdir(parents=True)"
    done = stage(code, "os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == 1
    assert "its kernel was killed, most often because memory was short; the same command continues" in done.stderr
    assert "Traceback" not in done.stderr
    assert stage("1 / 0").returncode == 1
    assert work.exists(), "the same code continues"
    write_json(project_root / "artifacts" / "check" / "dataset.json", {"modules": "of other code"})
    assert stage(f"import os; print(os.path.exists({str(work)!r}))").returncode == 0
    assert outputs(project_root) == "False\n", "other code begins anew"
    assert not work.parent.exists(), "the stage has ended well"


@pytest.mark.parametrize("limit", ["", "ulimit -n 40;"])
def test_a_kernel_that_does_not_start_is_one_sentence(stage, project_root, limit):
    assert stage("1").returncode == 0
    dies = "import os, sys\n'ipykernel' in str(sys.orig_argv) and os._exit(1)"
    (project_root / "sitecustomize.py").write_text("" if limit else dies)
    path = os.pathsep.join([str(project_root), os.environ.get("PYTHONPATH", "")])
    done = run(project_root, "sh", "-c", f"{limit} exec {sys.executable} -m paper run dataset", PYTHONPATH=path)
    assert re.search(r"^error: 01_dataset\.ipynb: its kernel .* the same command continues", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr


def test_an_experiment_runs_the_code_of_its_own_folder(tmp_path):
    copy_project(tmp_path)
    for module in ("multishield/errors.py", "paper/paths.py"):
        file = tmp_path / "src" / module
        file.write_text(file.read_text() + "MARK = 'the copy'\n")
    code = "import multishield.errors, paper.paths; print(multishield.errors.MARK, paper.paths.MARK)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    write_notebook(notebook, tmp_path / "notebooks" / "01_dataset.ipynb")
    run(tmp_path, "sh", "-c", read_yaml(tmp_path / "dvc.yaml")["stages"]["dataset"]["cmd"])
    assert outputs(tmp_path) == "the copy the copy\n"


def test_a_notebook_that_is_run_by_hand_computes_as_the_pipeline_and_writes_beside_it(stage, project_root):
    code = "import os; from paper import paths, stage; s = stage('dataset'); "
    code += "print(os.environ['ATEN_CPU_CAPABILITY'], s.folder, paths.artifacts('training'))"
    settings = {"ATEN_CPU_CAPABILITY": "default", "PYTHONWARNINGS": "error"}
    beside, training = project_root / ".multishield/by-hand/artifacts/dataset", project_root / "artifacts/training"
    words, result = run(project_root, sys.executable, "-c", code, **settings).stdout.splitlines()
    assert words == f"Run by hand: results go to {beside}, and the pipeline's stay as they are."
    assert result == f"avx2 {beside} {training}"
    done = run(project_root, sys.executable, "-c", f"import torch; {code}", **settings)
    assert "this kernel's arithmetic is not the pipeline's; restart it" in done.stderr
    assert stage(code).returncode == 0
    assert outputs(project_root) == f"avx2 {project_root / 'artifacts' / 'dataset'} {training}\n"


def test_a_notebook_that_fails_is_named(stage, project_root):
    bar = "from multishield.progress import progress\nbar = progress(None, 'counting', 'number', 3)"
    done = stage(bar, "1 / 0")
    assert done.returncode == 1
    assert re.search(r"(?m)^error: 01_dataset\.ipynb, cell \[2\]: ZeroDivisionError: division by zero", done.stderr)
    copy = read_notebook(project_root / re.search(r"The executed copy is (\S+)", done.stderr)[1])
    assert "ZeroDivisionError" in {o.get("ename") for cell in copy.cells for o in cell.get("outputs", [])}
    assert "Traceback" not in done.stderr
    assert not (project_root / "artifacts").exists()


def test_the_kernel_is_this_python_with_the_portable_arithmetic_and_progress_stays_outside(
    stage, project_root, tmp_path
):
    foreign = tmp_path / "elsewhere" / "kernels" / "python3"
    write_json(foreign / "kernel.json", {"argv": ["/bin/false"], "display_name": "x", "language": "python"})
    names = list(arithmetic.PORTABLE)
    code = f"import os, sys; print(sys.executable); print({{n: os.environ[n] for n in {names}}})"
    startup = tmp_path / "ipython" / "profile_default" / "startup" / "00.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("import sys; sys.executable = 'of the user'")
    bar = "from multishield.progress import progress; list(progress(range(3), 'counting', 'number'))\nNone"
    users = {"JUPYTER_PATH": tmp_path / "elsewhere", "IPYTHONDIR": startup.parents[2], "PYTHONSTARTUP": startup}
    done = stage(code, bar, OMP_NUM_THREADS="4", ATEN_CPU_CAPABILITY="default", **{k: str(v) for k, v in users.items()})
    assert done.returncode == 0, done.stderr
    assert outputs(project_root).splitlines() == [sys.executable, str(arithmetic.PORTABLE)]
    assert "counting: 100%" in done.stderr
    executed = project_root / "artifacts" / "notebooks" / "01_dataset.ipynb"
    assert platform.python_version() not in executed.read_text(), "other Pythons give the same bytes"


def test_native_arithmetic_leaves_the_environment_alone(monkeypatch):
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "7"})
    arithmetic.choose("native")
    assert os.environ == {"OMP_NUM_THREADS": "7"}
    arithmetic.choose("portable")
    assert os.environ["OMP_NUM_THREADS"] == arithmetic.THREADS


SCRIPT = """
import hashlib, os, sys
from paper.pipeline import arithmetic
arithmetic.choose(sys.argv[1])
import torch
from paper.models.cifar_resnet import build_network
from paper.models.classifier import Classifier
torch.manual_seed(0)
model = Classifier(build_network("resnet8", 10), [0.5] * 3, [0.25] * 3)
text = torch.nn.TransformerEncoderLayer(64, 2, 128, dropout=0.0, batch_first=True)
optimiser = torch.optim.SGD([*model.parameters(), *text.parameters()], 0.05, 0.9, nesterov=True)
for step in range(3):
    x = torch.rand(32, 3, 32, 32, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(model(x), torch.randint(10, (32,)))
    loss = loss + text(torch.rand(8, 16, 64)).exp().mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
weights = b"".join(t.detach().numpy().tobytes() for t in [*model.parameters(), *text.parameters(), x.grad])
print(torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), hashlib.sha256(weights).hexdigest())
"""
ELSEWHERE = [
    {"OMP_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "3"},
    {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "SSE4_2"},
    {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="portable arithmetic is that of x86-64 processors")
def test_training_ends_with_the_same_bytes_under_any_setting(tmp_path):
    """Other processors themselves cannot be had here: docs/portability.md says what was tried on which."""

    def results(choice: str, settings: list[dict]) -> set[str]:
        return {run(tmp_path, sys.executable, "-c", SCRIPT, choice, **setting).stdout for setting in settings}

    (portable,) = results("portable", [{}, *ELSEWHERE])
    assert portable.startswith(f"{arithmetic.THREADS} AVX2 ")
    assert len({result.split()[-1] for result in results("native", ELSEWHERE[1:3])}) > 1, "the test can fail"


def test_what_the_system_refuses_is_one_sentence(stage, project_root):
    (project_root / "artifacts").write_text("a file where a folder should be")
    done = stage("1")
    assert done.returncode == 1
    assert re.search(r"error: .*artifacts\S*: .*; make room on its disk .*, make it readable and writable", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"cells": 1, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "no json"]
)
def test_a_notebook_of_another_form(tmp_path, text):
    (tmp_path / "01_dataset.ipynb").write_text(text)
    with pytest.raises(UserError, match="is not a notebook; restore it"):
        read_notebook(tmp_path / "01_dataset.ipynb")


def test_files_have_the_user_s_mode_and_are_utf8_in_any_locale(tmp_path):
    old = os.umask(0o027)
    try:
        file = write_json(tmp_path / "a.json", ["café", "猫"])
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    code = "from pathlib import Path; from multishield.files import read_json; print(ascii(read_json(Path('a.json'))))"
    done = run(tmp_path, sys.executable, "-c", code, LC_ALL="en_US.ISO-8859-1", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.stdout.strip() == ascii(read_json(file)) == ascii(["café", "猫"]), done.stderr
