"""Use outside an evaluation: decisions with their reasons, extensions, and the notebook that shows both."""

import json
import sys

import nbformat
import papermill
import pytest
import torch
from PIL import Image
from torch import nn

from conftest import CHEAP, ROOT, copy_project, edit_params, run, run_notebooks
from multishield import MultiShield
from paper.pipeline import predict

PAPER = (sys.executable, "-m", "paper")


class Fixed(nn.Module):
    """The same scores for every image."""

    def __init__(self, scores):
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores))

    def forward(self, x):
        return self.scores.expand(len(x), -1)


@pytest.mark.parametrize(
    ("cosines", "tolerance", "decision", "gap"),
    [
        ([0.30, 0.10, 0.0], 0.0, "cat", 0.0),
        ([0.10, 0.30, 0.0], 0.0, "rejected", 0.2),
        ([0.10, 0.30, 0.0], 0.25, "cat", 0.2),
    ],
)
def test_a_decision_and_its_reasons(cosines, tolerance, decision, gap):
    shield = MultiShield(Fixed([2.0, 1.0, 0.0]), Fixed(cosines), tolerance)
    explained = predict.explained(shield, torch.rand(2, 3, 8, 8), ["cat", "dog", "ox"])
    assert len(explained) == 2
    assert explained[0]["decision"] == decision
    assert explained[0]["gap"] == pytest.approx(gap)
    assert explained[0]["tolerance"] == tolerance
    assert list(explained[0]["classifier"]) == ["cat", "dog", "ox"]
    assert sum(explained[0]["classifier"].values()) == pytest.approx(1)
    assert list(explained[0]["clip"].values()) == pytest.approx(sorted(cosines, reverse=True))


def test_the_notebook_of_extensions_runs(tmp_path):
    executed = tmp_path / "extending.ipynb"
    notebooks = ROOT / "notebooks"  # where `make lab` starts
    papermill.execute_notebook(notebooks / "extending.ipynb", executed, cwd=str(notebooks), progress_bar=False)
    outputs = [o for c in nbformat.read(executed, 4).cells for o in c.get("outputs", [])]
    values = [o["data"]["text/plain"] for o in outputs if "text/plain" in o.get("data", {})]
    assert values[0] == "1.0", "the shield of the example is right on clean images"
    assert any("images resist at 8/255" in v for v in values)
    source = (ROOT / "examples" / "own.py").read_text()
    shown = [o["data"]["text/plain"] for o in outputs if "def " in o.get("data", {}).get("text/plain", "")]
    assert len(shown) == 3
    for function in shown:
        assert function.strip() in source
        assert len(function.strip().splitlines()) < 20


OWN = CHEAP | {
    "dataset.name": "examples.own:stripes",
    "dataset.root": "examples",
    "dataset.train": 0,
    "dataset.validation": 20,
    "dataset.evaluate": 20,
    "classifiers": ["neighbours"],
    "training": {"neighbours": {"source": "factory", "factory": "examples.own:neighbours"}},
    "alignment": {"source": "factory", "prompts": ["a photo of {}"], "factory": "examples.own:stripes_clip"},
}


@pytest.mark.timeout(600)
class TestExtensionsInThePipeline:
    """In order: the pipeline of three extensions, then predictions with what it has made."""

    @pytest.fixture(scope="class")
    def own(self, tmp_path_factory):
        folder = copy_project(tmp_path_factory.mktemp("own"))
        edit_params(folder, OWN)
        return folder

    def test_the_pipeline_runs(self, own):
        run_notebooks(own)
        metrics = json.loads((own / "artifacts" / "report" / "metrics.json").read_text())["neighbours"]
        assert metrics["unaware"]["clean_accuracy"] == 1.0

    def test_predictions(self, own):
        Image.linear_gradient("L").resize((64, 48)).save(own / "level.png")
        done = run(own, *PAPER, "predict", "level.png", "--json")
        assert done.returncode == 0, done.stderr
        (prediction,) = json.loads(done.stdout)
        assert prediction["image"] == "level.png"
        assert prediction["decision"] == "level stripes"
        assert set(prediction["clip"]) == {"upright stripes", "level stripes"}
        done = run(own, *PAPER, "predict", "level.png", "level.png")
        assert done.stdout.splitlines()[0].startswith("level.png: level stripes  (classifier level stripes ")
        assert len(done.stdout.splitlines()) == 2

    @pytest.mark.parametrize(
        ("arguments", "words"), [(("nothing.png",), "nothing.png"), (("params.yaml",), "cannot be read as an image")]
    )
    def test_bad_input_is_one_sentence(self, own, arguments, words):
        done = run(own, *PAPER, "predict", *arguments)
        assert done.returncode == 1
        assert words in done.stderr
        assert not done.stdout
        assert "Traceback" not in done.stderr
