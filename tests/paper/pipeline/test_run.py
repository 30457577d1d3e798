"""The runner around a notebook: what it sets up, and what it says when something under it gives way."""

import json
import os
import platform
import re
import stat
import sys

import nbformat
import pytest

from conftest import ROOT, run
from multishield.errors import UserError, in_words
from multishield.files import read_json, write_json, write_text
from multishield.tensors import load_tensors, save_tensors
from paper.pipeline import arithmetic
from paper.pipeline.notebooks import canonical, read_notebook, write_notebook


@pytest.fixture
def stage(project_root):
    """A project whose dataset notebook has these cells."""
    (project_root / "params.yaml").write_text((ROOT / "profiles" / "demo.yaml").read_text())
    (project_root / "notebooks").mkdir()

    def with_cells(*codes: str, **environment: str):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in codes])
        write_notebook(canonical(notebook), project_root / "notebooks" / "01_dataset.ipynb")
        return run(project_root, sys.executable, "-m", "paper.pipeline.run", "dataset", **environment)

    return with_cells


def outputs(project) -> str:
    notebook = read_notebook(project / "artifacts" / "notebooks" / "01_dataset.ipynb")
    return "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))


def test_a_killed_kernel_is_one_sentence(stage):
    done = stage("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == 1
    assert "its kernel was killed, most often for want of memory; the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_notebook_that_fails_is_named(stage, project_root):
    done = stage("1", "1 / 0")
    assert done.returncode == 1
    assert re.search(r"error: 01_dataset\.ipynb, cell \[2\]: ZeroDivisionError: division by zero", done.stderr)
    copy = re.search(r"The executed copy is (\S+)", done.stderr)[1]
    outputs = [o for cell in read_notebook(project_root / copy).cells for o in cell.get("outputs", [])]
    assert "ZeroDivisionError" in {o.get("ename") for o in outputs}
    assert "Traceback" not in done.stderr
    assert not (project_root / "artifacts").exists()


def test_the_kernel_is_this_python_with_the_portable_arithmetic(stage, project_root, tmp_path):
    foreign = tmp_path / "elsewhere" / "kernels" / "python3"
    write_json(foreign / "kernel.json", {"argv": ["/bin/false"], "display_name": "x", "language": "python"})
    names = list(arithmetic.PORTABLE)
    code = f"import os, sys; print(sys.executable); print({{n: os.environ[n] for n in {names}}})"
    done = stage(code, JUPYTER_PATH=str(tmp_path / "elsewhere"), OMP_NUM_THREADS="4", ATEN_CPU_CAPABILITY="default")
    assert done.returncode == 0, done.stderr
    assert outputs(project_root).splitlines() == [sys.executable, str(arithmetic.PORTABLE)]


def test_an_executed_notebook_is_the_same_under_every_python_3_11(stage, project_root):
    assert stage("1").returncode == 0
    executed = project_root / "artifacts" / "notebooks" / "01_dataset.ipynb"
    assert platform.python_version() not in executed.read_text()
    assert read_notebook(executed).metadata == read_notebook(project_root / "notebooks" / "01_dataset.ipynb").metadata


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
    found = {run(tmp_path, sys.executable, "-c", SCRIPT, "portable", **e).stdout for e in ({}, *ELSEWHERE)}
    assert len(found) == 1
    assert found.pop().startswith(f"{arithmetic.THREADS} AVX2 ")
    native = {run(tmp_path, sys.executable, "-c", SCRIPT, "native", **e).stdout.split()[-1] for e in ELSEWHERE[1:3]}
    assert len(native) > 1, "without the setting these machines would differ: the test can fail"


def test_what_the_system_refuses_is_one_sentence(stage, project_root):
    (project_root / "artifacts").write_text("a file where a folder should be")
    done = stage("1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "artifacts" in done.stderr
    said = in_words(OSError(28, "No space left on device", "reports/index.html"))
    assert (
        said
        == "reports/index.html: No space left on device; make room there, make it readable and writable, or remove it"
    )


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"cells": 1, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "no json"]
)
def test_a_notebook_of_another_form(tmp_path, text):
    (tmp_path / "01_dataset.ipynb").write_text(text)
    with pytest.raises(UserError, match="is not a notebook; restore it"):
        read_notebook(tmp_path / "01_dataset.ipynb")


def test_files_have_the_user_s_mode(tmp_path):
    import torch

    old = os.umask(0o027)
    try:
        files = [write_text(tmp_path / "a.txt", "x"), save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)})]
    finally:
        os.umask(old)
    assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o640}


def test_what_a_stage_makes_is_made_by_that_stage(project_root):
    for load, name in ((read_json, "classes.json"), (load_tensors, "evaluation.safetensors")):
        path = project_root / "artifacts" / "dataset" / name
        with pytest.raises(UserError, match="does not exist; the stage dataset makes it"):
            load(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{")
        with pytest.raises(UserError, match="the stage dataset makes it: remove what is there"):
            load(path)


def test_text_is_utf8_in_any_locale(tmp_path):
    write_json(tmp_path / "a.json", ["café", "猫"])
    code = "from pathlib import Path; from multishield.files import read_json; "
    code += "print(ascii(read_json(Path('a.json'))))"
    done = run(tmp_path, sys.executable, "-c", code, LC_ALL="en_US.ISO-8859-1", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.stdout.strip() == ascii(["café", "猫"]), done.stderr
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == ["café", "猫"]
