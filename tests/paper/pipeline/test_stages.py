"""The stages as they are written down: notebooks, dvc.yaml, and what makes a stage stale."""

import ast
import re
import shutil

import nbformat
import pytest
from ruamel.yaml import YAML

from conftest import ROOT, edit_params
from paper.params import Params
from paper.params.values import STUDIES
from paper.pipeline import fingerprints, notebooks
from paper.pipeline.fingerprints import SECTIONS, Code, fingerprint_of
from paper.pipeline.notebooks import STAGES, read_notebook, source_notebook


def pipeline() -> dict:
    return YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]


def notebook(stage: str) -> nbformat.NotebookNode:
    return read_notebook(ROOT / "notebooks" / source_notebook(stage))


def code_of(stage: str) -> str:
    return "\n".join(cell.source for cell in notebooks.code_cells(notebook(stage)))


@pytest.mark.parametrize("stage", STAGES)
def test_notebooks_are_canonical_short_and_explained(stage):
    text = (ROOT / "notebooks" / source_notebook(stage)).read_text()
    assert text == nbformat.writes(notebooks.canonical(notebook(stage))) + "\n", (
        "outputs, counts or ids: restart and clear it"
    )
    cells = notebook(stage).cells
    assert cells[0].source.startswith("# ")
    for cell in cells:
        assert len(cell.source.splitlines()) <= 25
        assert cell.cell_type != "code" or not re.search(r"^\s*(def|class) ", cell.source, re.MULTILINE)


def test_the_tree_follows_the_naming_law():
    stages = set(pipeline()) - {"check", "publish"}
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    assert stages == set(STAGES) == set(SECTIONS)
    assert stages <= set(params)
    assert {p.stem[3:] for p in (ROOT / "notebooks").glob("0*.ipynb")} == stages


def test_opening_and_running_a_notebook_changes_nothing_canonical():
    touched = notebook("dataset")
    for i, cell in enumerate(touched.cells):
        cell.id, cell.metadata["collapsed"] = f"random{i}", True
        if cell.cell_type == "code":
            cell.execution_count = i
            cell.outputs = [nbformat.v4.new_output("stream", text="seen")]
    touched.metadata["language_info"] = {"name": "python", "version": "3.11.99"}
    assert nbformat.writes(notebooks.canonical(touched)) == nbformat.writes(notebooks.canonical(notebook("dataset")))


def test_a_page_has_the_words_of_the_source_and_the_outputs_of_the_run():
    executed, source = (notebooks.canonical(notebook("baseline")) for _ in range(2))
    for cell in notebooks.code_cells(executed):
        cell.outputs = [nbformat.v4.new_output("stream", text=cell.source[:5])]
    injected = nbformat.v4.new_code_cell("classifier = 'robust'", metadata={"tags": ["injected-parameters"]})
    executed.cells.insert(2, injected)
    source.cells[0].source = "# Other words"
    source.cells.insert(1, nbformat.v4.new_markdown_cell("and more"))
    told = notebooks.retold(executed, source)
    assert [c.source for c in told.cells[:2]] == ["# Other words", "and more"]
    assert injected in told.cells
    assert all(c.outputs[0].text == c.source[:5] for c in notebooks.code_cells(told))
    source.cells.append(nbformat.v4.new_code_cell("1"))
    assert notebooks.retold(executed, source) is executed, "other code: its outputs are not shown as those of this one"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_parameters_that_its_notebook_reads(stage):
    read = set(re.findall(r"params\.(\w+)\b", code_of(stage))) & set(Params.model_fields)
    listed = {p.split(".")[0] for p in pipeline()[stage]["params"]}
    read |= listed if stage == "report" else set()  # it reads more than the notebook shows
    assert read == listed == set(SECTIONS[stage])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_ten_lines_and_has_its_fingerprint(stage):
    described = pipeline()[stage]
    items = {"studies": "_${item.study}"} | dict.fromkeys(notebooks.PER_CLASSIFIER, "_${item.classifier}")
    name = stage + items.get(stage, "")
    assert f"artifacts/check/{name}.json" in described["deps"]
    assert not [d for d in described["deps"] if d.startswith("src")]
    cached = [out for out in described["outs"] if isinstance(out, str)]
    assert len(cached) == len(described["outs"]), "an output that is not cached would switch DVC's run cache off"


@pytest.fixture
def package(tmp_path):
    """A copy of the package's code, to be changed."""
    shutil.copytree(ROOT / "src", tmp_path / "src")
    return tmp_path / "src"


def replace(package, file: str, old: str, new: str) -> None:
    text = (package / file).read_text()
    assert old in text, f"{file} no longer holds {old!r}"
    (package / file).write_text(text.replace(old, new))


def stale(package, params: Params, before: dict | None = None) -> dict | set[str]:
    """Fingerprints of every run; with those of before, the names of the runs that have changed."""
    code = Code(package)
    now = {
        notebooks.run_name(s, c)[3:]: fingerprint_of(code, s, c, notebook(s), params)
        for s, c in notebooks.runs(params.classifiers)
    }
    return now if before is None else {name for name in now if now[name] != before[name]}


def demo() -> Params:
    return Params.load(ROOT / "profiles" / "demo.yaml")


@pytest.fixture(scope="module")
def before() -> dict:
    """The demo's fingerprints by the code as it is."""
    return stale(fingerprints.PACKAGE, demo())


ATTACKS = {f"{stage}_{name}" for stage in ("adaptive", "comparison") for name in ("standard", "robust")}
ATTACKS |= {f"studies_{study}" for study in STUDIES}
HARMLESS = {
    "a comment": (
        "multishield/attacks/joint.py",
        "class StepTowardsWeakestMargin:",
        "# words\nclass StepTowardsWeakestMargin:",
    ),
    "a docstring": ("multishield/attacks/joint.py", '"""Drive all margins', '"""Lead all margins'),
    "an error's sentence": ("multishield/shield.py", "it must be a finite number >= 0", "it must be finite"),
    "a loader's sentence": ("paper/data/datasets.py", "are missing or damaged", "are gone"),
    "an annotation": (
        "multishield/attacks/losses.py",
        "def at(logits: Tensor, classes: Tensor)",
        "def at(logits, classes)",
    ),
    "progress": ("multishield/attacks/resumable.py", "images left, robust so far", "to go"),
    "plumbing": ("multishield/files.py", "os.fsync(stream.fileno())", "stream.fileno()"),
    "another data set": ("paper/data/datasets.py", '"trainval" if split == "train"', '"train" if split == "train"'),
    "another source of classifiers": (
        "paper/models/pretrained.py",
        "    if params.weights:",
        "    if params.weights is not None:",
    ),
    "another attack on AutoAttack's list": ("paper/models/robustbench.py", "utils.load_model(", "utils.load_it("),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_cannot_change_a_number_makes_nothing_stale(package, before, change):
    replace(package, *change)
    assert stale(package, demo(), before) == set()


def test_drawing_makes_the_report_stale_alone(package, before):
    replace(package, "paper/report/figures.py", 'GREEN, ORANGE, RED = "#3b7f5c"', 'GREEN, ORANGE, RED = "#000000"')
    assert stale(package, demo(), before) == {"report"}


def test_a_new_entry_of_the_model_zoo_makes_nothing_stale(package, before):
    replace(
        package,
        "paper/models/model_zoo.py",
        '"Standard": (',
        '"New": (ROBUSTBENCH, CIFAR, 1.0, 0.0, ""), "Standard": (',
    )
    assert stale(package, demo(), before) == set()


BOTH = {"standard", "robust"}
TELLING = {
    "the joint attack": (("multishield/attacks/joint.py", "decay: float = 0.75", "decay: float = 0.7"), ATTACKS),
    "the loop": (
        ("multishield/attacks/loop.py", 'self.slots["step"] = self.slots["step"] + 1', 'self.slots["step"] += 1'),
        ATTACKS | {f"training_{n}" for n in BOTH},
    ),
    "the shield": (
        ("multishield/shield.py", "reject = top + excess", "reject = excess + top"),
        ATTACKS | {"multishield_standard", "multishield_robust", "report"},
    ),
    "a network": (
        ("paper/models/cifar_resnet.py", "short = F.avg_pool2d(x, 1, self.stride)", "short = x[:, :, ::2, ::2]"),
        ATTACKS | {f"{s}_{n}" for s in ("training", "baseline", "multishield") for n in BOTH} | {"report"},
    ),
    "the data set": (
        ("paper/data/folders.py", "images.__getitem__, captions", "images[::-1].__getitem__, captions"),
        {"dataset"},
    ),
    "the training of robust towers, which the demo does not do": (
        ("paper/training/robust_tower.py", "2 * torch.rand(x.shape", "torch.rand(x.shape"),
        set(),
    ),
    "CLIP's training": (("paper/training/clip.py", "pct_start=0.3", "pct_start=0.2"), {"alignment"}),
    "adversarial training": (
        ("paper/training/classifier.py", "x + eps * (2 * noise - 1)", "x + eps * noise"),
        {"training_standard", "training_robust"},
    ),
    "a defence of the comparison": (
        (
            "paper/stages/comparison.py",
            "SummedLogProbabilities(classifier, clip, scale, t)",
            "ConfidenceThreshold(clip, t)",
        ),
        {"comparison_standard", "comparison_robust"},
    ),
    "a default": (("paper/params/sections.py", "beta: Weight = 6.0", "beta: Weight = 5.0"), set()),
}


@pytest.mark.parametrize(("change", "expected"), TELLING.values(), ids=TELLING)
def test_changed_code_makes_stale_exactly_the_runs_that_it_decides(package, before, change, expected):
    replace(package, *change)
    assert stale(package, demo(), before) == expected


def test_values_with_their_defaults_count(package, before):
    params = demo()
    changed = params.training["robust"].model_copy(update={"beta": 5.0})
    params = params.model_copy(update={"training": {**params.training, "robust": changed}})
    assert stale(package, params, before) == {"training_robust"}


def test_a_factory_of_ones_own_counts(project_root, package):
    (project_root / "mine.py").write_text("def net(classes):\n    return 1\n")
    shutil.copy(ROOT / "profiles" / "demo.yaml", project_root / "params.yaml")
    edit_params(
        project_root, {"classifiers": ["mine"], "training": {"mine": {"source": "factory", "factory": "mine:net"}}}
    )
    params = Params.load()
    before = stale(package, params)
    (project_root / "mine.py").write_text("def net(classes):\n    # the same\n    return 1\n")
    assert stale(package, params, before) == set()
    (project_root / "mine.py").write_text("def net(classes):\n    return 2\n")
    assert {"training_mine", "baseline_mine", "adaptive_mine"} <= stale(package, params, before)


def test_every_table_that_is_chosen_from_by_parameters_is_written_out():
    for path in (ROOT / "src").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "ByParameter":
                (table,) = call.args
                assert all(isinstance(k, ast.Constant) for k in table.keys), path.name
    assert fingerprints.PACKAGE == ROOT / "src"
