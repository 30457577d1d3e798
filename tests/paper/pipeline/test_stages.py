"""The stages as they are written down: notebooks, dvc.yaml, and what makes a stage stale."""

import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from ruamel.yaml import YAML
from traitlets.config import PyFileConfigLoader

from conftest import ROOT, edit_params
from multishield.errors import UserError
from paper.naming import PER_CLASSIFIER, STAGES, STUDIES, runs
from paper.params import DEFAULTS, Params
from paper.pipeline import notebooks, stale
from paper.pipeline.notebooks import code_cells, read_notebook, write_notebook

WRITTEN = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
DVC = {name: stage.get("do", stage) for name, stage in WRITTEN.items()}


def notebook(stage: str) -> nbformat.NotebookNode:
    return read_notebook(ROOT / "notebooks" / notebooks.source_path(stage).name)


@pytest.mark.parametrize("stage", STAGES)
def test_notebooks_are_cleared_short_and_explained(stage, tmp_path):
    source = ROOT / "notebooks" / notebooks.source_path(stage).name
    cells = notebook(stage).cells
    assert source.read_text() == write_notebook(notebook(stage), tmp_path / "tidy.ipynb").read_text()
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")], "restart and clear it"
    assert cells[0].source.startswith("# ")
    for cell in cells:
        assert len(cell.source.splitlines()) <= 25
        assert cell.cell_type != "code" or not re.search(r"^\s*(def|class) ", cell.source, re.MULTILINE)


def test_the_tree_follows_the_naming_law():
    stages = set(DVC) - {"check", "publish"}
    assert stages == set(STAGES) <= set(Params.model_fields)
    assert stages == {path.stem[3:] for path in (ROOT / "notebooks").glob("0*.ipynb")}
    assert stages <= {path.stem for path in (ROOT / "src" / "paper" / "stages").glob("*.py")}
    assert tuple(WRITTEN["studies"]["foreach"]) == STUDIES


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_its_fingerprint_its_parameters_and_cached_outputs(stage):
    item = "_${item.classifier}" if stage in PER_CLASSIFIER else "_${key}" if stage == "studies" else ""
    assert f"artifacts/check/{stage}{item}.json" in DVC[stage]["deps"]
    assert not [path for path in DVC[stage]["deps"] if path.startswith(("src", "notebooks"))]
    assert all(isinstance(out, str) for out in DVC[stage]["outs"]), "an uncached output switches DVC's run cache off"
    code = "\n".join(cell.source for cell in code_cells(notebook(stage)))
    read = set(re.findall(r"params\.(\w+)", code)) & set(Params.model_fields)
    assert read <= {name.partition(".")[0] for name in DVC[stage]["params"]}


def test_a_page_has_the_text_of_the_source_and_the_outputs_of_the_run():
    executed, source = notebook("baseline"), notebook("baseline")
    for cell in code_cells(executed):
        cell.outputs = [nbformat.v4.new_output("stream", text=cell.source[:5])]
    injected = nbformat.v4.new_code_cell("classifier = 'robust'", metadata={"tags": ["injected-parameters"]})
    executed.cells.insert(2, injected)
    source.cells[0].source = "# Other words"
    source.cells.insert(1, nbformat.v4.new_markdown_cell("and more"))
    page = notebooks.with_source_text(executed, source)
    assert [cell.source for cell in page.cells[:2]] == ["# Other words", "and more"]
    assert injected in page.cells
    assert all(cell.outputs[0].text == cell.source[:5] for cell in code_cells(page))
    source.cells.append(nbformat.v4.new_code_cell("1"))
    assert notebooks.with_source_text(executed, source) is executed, "other code: its outputs are not of this code"


def test_outputs_and_metadata_of_a_run_by_hand_are_cleared_and_other_text_is_left(tmp_path):
    source = (ROOT / "notebooks" / "05_multishield.ipynb").read_text()
    ran = nbformat.reads(source, as_version=4)
    ran.metadata.language_info.version = "3.13"
    for number, cell in enumerate(code_cells(ran)):
        cell.execution_count, cell.metadata["execution"] = number, {"iopub.execute_input": "now"}
        cell.outputs = [nbformat.v4.new_output("stream", text="seen")]
    command = [sys.executable, "-m", "paper.pipeline.notebooks"]
    done = subprocess.run(command, input=nbformat.writes(ran), capture_output=True, text=True)
    assert done.stdout == source, "as git adds it: see .gitattributes and the Makefile"
    config = PyFileConfigLoader(str(ROOT / ".jupyter" / "jupyter_lab_config.py")).load_config()
    config.FileContentsManager.pre_save_hook(saved := {"type": "notebook", "content": ran})
    assert nbformat.writes(nbformat.from_dict(saved["content"])) + "\n" == source, "as `make lab` saves it"
    assert notebooks.cleared("<<<<<<< HEAD\n{}") == "<<<<<<< HEAD\n{}"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the code, to be changed; fingerprints are of this copy."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(stale, "SOURCE", tmp_path / "src")
    return tmp_path / "src"


def fingerprints(params: Params) -> dict[tuple, dict]:
    """By stage and classifier, or study."""
    return {run: stale.fingerprint_of(*run, notebook(run[0]), params) for run in runs(params.classifiers)}


def stages_that_differ(one: dict, other: dict) -> set[str]:
    return {stage for stage, item in one if one[stage, item] != other[stage, item]}


ATTACKS = {"baseline", "adaptive", "comparison", "studies"}
TELLING = {
    "THREADS": ("paper/pipeline/arithmetic.py", 'THREADS = "2"', 'THREADS = "4"', set(STAGES)),
    "MKL's branch": ("paper/pipeline/arithmetic.py", '"COMPATIBLE"', '"AVX2"', set(STAGES)),
    "AutoAttack's batches shifted by one image": (
        *("paper/stages/baseline.py", "data[start : start + size]", "data[start + 1 : start + size + 1]"),
        {"baseline"},
    ),
    "attacked images in half precision": (
        *("multishield/images.py", "    images: Tensor\n    broken_by", "    images: torch.HalfTensor\n    broken_by"),
        ATTACKS,
    ),
    "results unsorted": ("multishield/resume.py", "[torch.cat(index).argsort()]", "", ATTACKS - {"baseline"}),
    "the entry of the library": ("multishield/evaluation.py", "import", "import math\nimport", {"adaptive"}),
    "a function's own import": ("multishield/clip.py", "\nfrom", "\nimport math\nfrom", {"alignment", "adaptive"}),
    "a default": ("paper/params/sections.py", "beta: Weight = 6.0", "beta: Weight = 5.0", ATTACKS | {"training"}),
    "a package's own code": ("paper/__init__.py", "import_module(f", "import_module('.' f", set(STAGES)),
}
HARMLESS = {
    "a docstring": ("multishield/attacks/joint.py", '    """Drive all margins', '    """Push all margins', set()),
    "a comment": ("multishield/attacks/joint.py", "\ndef joint(", "\n# words\ndef joint(", set()),
    "layout": ("multishield/attacks/joint.py", "\ndef joint(\n", "\n\n\ndef joint(\n\n", set()),
    "a figure's colour": ("paper/report/figures.py", "#3b7f5c", "#000000", {"report"}),
    "another data set's loader": ("paper/data/datasets.py", '"trainval"', '"train"', {"dataset", "report"}),
    "the words of a page": ("paper/report/page.html.j2", "<title>", "<title>The page: ", set()),
}


@pytest.fixture(scope="module")
def before() -> dict:
    """The demo's fingerprints by the code as it is."""
    return fingerprints(Params.load(DEFAULTS))


def change(package, file: str, old: str, new: str) -> None:
    text = (package / file).read_text()
    assert old in text, f"{file} no longer holds {old!r}"
    (package / file).write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(("file", "old", "new", "expected"), TELLING.values(), ids=TELLING)
def test_every_stage_that_computes_with_changed_code_is_stale(package, before, file, old, new, expected):
    change(package, file, old, new)
    assert stages_that_differ(before, fingerprints(Params.load(DEFAULTS))) >= expected


@pytest.mark.parametrize(("file", "old", "new", "allowed"), HARMLESS.values(), ids=HARMLESS)
def test_no_attack_is_stale_after_a_change_of_words_drawing_or_another_data_set(
    package, before, file, old, new, allowed
):
    change(package, file, old, new)
    assert stages_that_differ(before, fingerprints(Params.load(DEFAULTS))) <= allowed


def test_versions_and_the_arithmetic_count(before, monkeypatch):
    monkeypatch.setattr(stale, "version", lambda package: "0" if package == "pandas" else "1")
    assert all(run["packages"]["torch"] == "1" for run in fingerprints(Params.load(DEFAULTS)).values())
    assert {"numpy", "open_clip_torch", "safetensors"} <= before["adaptive", "robust"]["packages"].keys()
    assert {"pillow", "torchvision"} <= before["dataset", None]["packages"].keys()
    native = Params.load(DEFAULTS).model_copy(update={"arithmetic": "native"})
    monkeypatch.undo()
    assert stages_that_differ(before, fingerprints(native)) == set(STAGES)


def test_a_module_of_ones_own_counts_for_those_who_name_it(project_root):
    (project_root / "mine.py").write_text("def net(classes):\n    return 1\n")
    shutil.copy(DEFAULTS, project_root / "params.yaml")
    robust = Params.load().training["robust"].model_dump(mode="json")
    mine = {"mine": {"source": "factory", "factory": "mine:net"}, "robust": robust}
    edit_params(project_root, {"classifiers": ["mine", "robust"], "training": mine})
    before = fingerprints(Params.load())
    (project_root / "mine.py").write_text("def net(classes):\n    # the same\n    return 1\n")
    assert fingerprints(Params.load()) == before
    (project_root / "mine.py").write_text("def net(classes):\n    return 2\n")
    now = fingerprints(Params.load())
    assert stages_that_differ(before, now) >= {"training", "baseline", "adaptive"}
    assert before["training", "robust"] == now["training", "robust"]


def test_a_replaced_file_makes_the_stage_that_loads_it_stale(project_root):
    shutil.copy(DEFAULTS, project_root / "params.yaml")
    net = {"source": "checkpoint", "architecture": "resnet8", "path": "net", "mean": [0.5] * 3, "std": [0.5] * 3}
    clip = {"source": "file", "prompts": ["a {}"], "config": "config", "weights": "clip"}
    edit_params(project_root, {"training.robust": net, "alignment": clip})
    for name in ("net", "config", "clip"):
        before = fingerprints(Params.load())
        (project_root / name).write_text("other weights")
        assert stages_that_differ(before, fingerprints(Params.load())) == {"training" if name == "net" else "alignment"}


def test_magics_are_read_and_a_cell_that_is_no_python_or_misses_its_tag_is_named():
    params, cells = Params.load(DEFAULTS), code_cells(read := notebook("baseline"))
    cells[1].source = f"%matplotlib inline\nfiles = !ls\n{cells[1].source}"
    assert stale.fingerprint_of("baseline", "robust", read, params)["modules"].keys() >= {"paper.stages.baseline"}
    cells[2].source = "1 +"
    with pytest.raises(UserError, match=r"^04_baseline\.ipynb, code cell 3 is not Python"):
        stale.fingerprint_of("baseline", "robust", read, params)
    cells[0].metadata.tags, cells[2].source = [], ""
    with pytest.raises(UserError, match=r"^04_baseline\.ipynb has no code cell with the tag parameters"):
        stale.fingerprint_of("baseline", "robust", read, params)


# A nested format and braces in an f-string, empty fields, a docstring, a character that is new to Unicode.
CODE = '''
def f(*, a: int = 1, **others) -> None:
    """A docstring."""
    return f"{a!r:>{b}} {{}}" f"", [None, 0, "", "\U0001fae8"]
'''


def test_python_3_11_3_12_and_3_13_give_the_same_hash():
    assert stale.code_hash(CODE) == "eaf46ac31407"
