"""open_clip's real architectures in the pipeline, with random weights from a file: two images, the smallest budgets."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from conftest import CHEAP, copy_project, edit_params, run_notebooks
from multishield import records
from paper.data import shapes

TINY = CHEAP | {"classifiers": ["standard"], "dataset.name": "folder", "dataset.root": "data/two", "dataset.train": 40}
TINY |= {"dataset.validation": 4, "dataset.evaluate": 2, "training.standard.epochs": 1, "adaptive.sanity.images": 1}
TINY |= {"training.standard.batch_size": 20, "training.standard.validation_steps": 1, "baseline.batch_size": 2}
TINY |= {"adaptive.joint.steps": 2, "adaptive.joint.targets": 1, "adaptive.square.queries": 2}


def project_with(model: str, folder):
    """A copy of the project with two classes of rendered images and that model's random weights in a file."""
    copy_project(folder)
    for split, count in (("train", 25), ("test", 3)):
        for name in ("circle", "star"):
            place = folder / "data" / "two" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                image, _ = shapes.render(shapes.CLASSES.index(name), np.random.default_rng([len(split), i]))
                Image.fromarray(image).save(place / f"{i}.png")
    torch.manual_seed(0)
    save_file(open_clip.create_model(model).state_dict(), folder / "weights.safetensors")
    clip = {"source": "open_clip", "prompts": ["a {}"], "model": model, "pretrained": "weights.safetensors"}
    edit_params(folder, TINY | {"alignment": clip})
    return folder


@pytest.fixture(autouse=True)
def _of_two(monkeypatch):
    """Batches of two images: filled up to sixteen they would take eight times as long."""
    monkeypatch.setattr("multishield.forward.FILL", 2)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_attack(tmp_path):
    """Up to the adaptive attacks: the comparison and the studies attack the same two models by the same code."""
    project = project_with("ViT-B-32", tmp_path)
    run_notebooks(project, until="adaptive")
    artifacts = project / "artifacts"
    rows = records.load(*(artifacts / s / "standard" / "records.csv" for s in ("baseline", "multishield", "adaptive")))
    assert len(rows) == 6 * 2
    assert rows.gap_attacked[rows.scenario != "no_shield"].notna().all()
    metrics = records.metrics(rows)
    robust = metrics[metrics.metric == "robust_accuracy"].set_index("scenario").value
    assert robust["worst_case"] <= robust["joint"]
    assert json.loads((artifacts / "alignment" / "clip.json").read_text())["preprocessing"]["size"] == [224, 224]
