"""Use outside an evaluation: decisions with their reasons, extensions, and the notebook that shows both."""

import contextlib
import json
import sys

import nbformat
import numpy as np
import papermill
import pytest
import torch
from PIL import Image

from conftest import CHEAP, ROOT, copy_project, edit_params, run, run_notebooks
from multishield import MultiShield
from multishield.errors import UserError
from paper.pipeline import predict
from small import Linear


def fixed(scores):
    return Linear(3, 192, then=lambda z: 0 * z + torch.tensor(scores))


AGREE, DIFFER = [0.30, 0.10, 0.0], [0.10, 0.30, 0.0]  # cosines of the three classes
CASES = [(AGREE, 0.0, "cat", 0.0), (DIFFER, 0.0, "rejected", 0.2), (DIFFER, 0.25, "cat", 0.2)]


@pytest.mark.parametrize(("cosines", "tolerance", "decision", "gap"), CASES)
def test_a_decision_and_its_reasons(cosines, tolerance, decision, gap):
    shield = MultiShield(fixed([2.0, 1.0, 0.0]), fixed(cosines), tolerance)
    first, second = predict.explained(shield, torch.rand(2, 3, 8, 8), ["cat", "dog", "ox"])
    assert first == second
    assert (first["decision"], first["tolerance"]) == (decision, tolerance)
    assert first["rejected"] == (decision == "rejected")
    assert first["gap"] == pytest.approx(gap)
    assert list(first["classifier_probability"]) == ["cat", "dog", "ox"]
    assert sum(first["classifier_probability"].values()) == pytest.approx(1)
    assert list(first["clip_cosine"].values()) == pytest.approx(sorted(cosines, reverse=True))


def test_the_notebook_of_extensions_runs(tmp_path):
    executed = tmp_path / "extending.ipynb"
    notebooks = ROOT / "notebooks"  # where `make lab` starts
    papermill.execute_notebook(notebooks / "extending.ipynb", executed, cwd=str(notebooks), progress_bar=False)
    outputs = [o for c in nbformat.read(executed, 4).cells for o in c.get("outputs", [])]
    values = [o["data"]["text/plain"] for o in outputs if "text/plain" in o.get("data", {})]
    assert values[0] == "'The shield is right on 100% of 16 clean images.'"
    assert "<td>worst case</td>" in str(outputs), "the result of `evaluate`"
    source = (ROOT / "examples" / "own.py").read_text()
    shown = [o["data"]["text/plain"] for o in outputs if "def " in o.get("data", {}).get("text/plain", "")]
    assert len(shown) == 3
    for function in shown:
        assert function.strip() in source
        assert len(function.strip().splitlines()) < 20


OWN = CHEAP | {"dataset.name": "examples.own:stripes", "dataset.root": "examples", "dataset.train": 0}
OWN |= {"dataset.validation": 20, "dataset.evaluate": 20, "classifiers": ["neighbours"]}
OWN |= {"training": {"neighbours": {"source": "factory", "factory": "examples.own:neighbours"}}}
OWN |= {"alignment": {"source": "factory", "prompts": ["a photo of {}"], "factory": "examples.own:stripes_clip"}}


@pytest.mark.timeout(600)
def test_extensions_run_in_the_pipeline_and_predict(tmp_path):
    own = copy_project(tmp_path)
    edit_params(own, OWN)
    run_notebooks(own)
    metrics = json.loads((own / "artifacts" / "report" / "metrics.json").read_text())["neighbours"]
    assert metrics["unaware"]["clean_accuracy"] == 1.0

    def predicted(*arguments: str):
        return run(own, sys.executable, "-m", "paper", "predict", *arguments)

    (folder := own / "folder").mkdir()
    Image.linear_gradient("L").resize((64, 48)).save(folder / "2.png")
    # Fine upright stripes on a slow change downwards. CLIP's resizing blurs the stripes.
    rows, columns = np.mgrid[:16, :16]
    Image.fromarray((8 * rows + 10 * (columns % 2)).astype(np.uint8)).save(folder / "10.png")
    (folder / "3.png").write_text("no image")
    (folder / "notes.txt").write_text("not read")
    done = predicted("folder", "--json", "--exit-code")
    first, broken, last = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, done.stderr) == (1, "")
    names = [p["image"] for p in (first, broken, last)]
    assert names == [f"folder/{name}.png" for name in (2, 3, 10)], "in natural order, and on after a broken one"
    assert (first["decision"], last["decision"]) == ("level stripes", "rejected")
    assert set(first["clip_cosine"]) == {"upright stripes", "level stripes"}
    assert list(broken) == ["image", "error"]
    assert "cannot be read as an image" in broken["error"]
    done = predicted("folder/2.png", "folder/2.png", "--exit-code")
    assert (done.returncode, len(lines := done.stdout.splitlines())) == (0, 2)
    assert lines[0].startswith("folder/2.png: level stripes  (classifier: level stripes, probability ")
    assert [predicted("folder/10.png", *more).returncode for more in ([], ["--exit-code"])] == [0, 3]
    assert predicted("folder/10.png", "--tolerance", "2", "--exit-code").returncode == 0
    command = f"ls folder/*.png | {sys.executable} -m paper predict - --json"
    names = [json.loads(line)["image"] for line in run(own, "sh", "-c", command).stdout.splitlines()]
    assert names == ["folder/10.png", "folder/2.png", "folder/3.png"]
    damaged = {"training/neighbours/classifier.json": "{}", "dataset/images.json": "[]", "alignment/clip.json": "{}"}
    for name, content in (damaged | {"dataset/classes.json": '["a", "b", "c"]'}).items():
        good = (own / "artifacts" / name).read_text()
        (own / "artifacts" / name).write_text(content)
        with contextlib.chdir(own), pytest.raises(UserError, match=r"(json is damaged|belong together).*reproduce"):
            list(predict.predict(["folder/2.png"]))
        (own / "artifacts" / name).write_text(good)
    words = {"nothing.png": "nothing.png", "artifacts": "the folder artifacts holds no image; accepted are .png"}
    for name, text in (words | {"params.yaml": "cannot be read as an image"}).items():
        done = predicted(name)
        assert (done.returncode, done.stdout) == (1, "")
        assert text in done.stderr
        assert "Traceback" not in done.stderr
    done = predicted("folder", "--tolerance", "-1")
    assert "the tolerance is -1.0; a finite number of at least 0 is accepted" in done.stderr
