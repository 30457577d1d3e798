"""open_clip's real architectures in the pipeline, with random weights from a file: two images, the smallest budgets."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import save_file

from conftest import CHEAP, copy_project, edit_params, run_notebooks
from multishield import records
from multishield.attacks.threat_model import Ball
from multishield.portfolio import Attacker
from paper.data import shapes
from paper.data.splits import load_split
from paper.params import Params
from paper.stages.baseline import load_shield

TINY = CHEAP | {
    "classifiers": ["standard"],
    "dataset.name": "folder",
    "dataset.root": "data/two",
    "dataset.train": 40,
    "dataset.validation": 4,
    "dataset.evaluate": 2,
    "training.standard.epochs": 1,
    "training.standard.batch_size": 20,
    "training.standard.validation_steps": 1,
    "baseline.batch_size": 2,
    "adaptive.joint.steps": 2,
    "adaptive.joint.targets": 1,
    "adaptive.square.queries": 2,
    "adaptive.sanity.images": 1,
}


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
    edit_params(folder, TINY)
    yaml, path = YAML(), folder / "params.yaml"
    values = yaml.load(path.read_text())
    values["alignment"] = {
        "source": "open_clip",
        "prompts": ["a photo of a {}"],
        "model": model,
        "pretrained": "weights.safetensors",
    }
    yaml.dump(values, path)
    return folder


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_attack(tmp_path):
    """Up to the adaptive attacks: the comparison and the studies attack the same two models by the same code."""
    project = project_with("ViT-B-32", tmp_path)
    run_notebooks(project, until="adaptive")
    artifacts = project / "artifacts"
    found = records.load(*(artifacts / s / "standard" / "records.csv" for s in ("baseline", "multishield", "adaptive")))
    assert len(found) == 6 * 2
    assert found.gap_attacked[found.scenario != "baseline"].notna().all()
    metrics = records.metrics(found, 2)
    robust = metrics[metrics.metric == "robust_accuracy"].set_index("scenario").value
    assert robust["adaptive"] <= robust["joint"]
    clip = json.loads((artifacts / "alignment" / "clip.json").read_text())
    assert clip["preprocessing"]["size"] == [224, 224]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_largest_clip_at_full_depth(tmp_path, monkeypatch):
    """All that another network changes: loading, embedding, deciding, and an attack that goes through both models."""
    project = project_with("ViT-L-14", tmp_path)
    run_notebooks(project, until="multishield")
    found = records.load(project / "artifacts" / "multishield" / "standard" / "records.csv")
    assert found.gap_attacked.notna().all()
    monkeypatch.chdir(project)
    params, data = Params.load(), load_split("evaluation")
    shield = load_shield("standard", params.multishield.tolerance)
    eps = params.threat_model.eps
    found = Attacker("standard", params.adaptive, Ball(eps), seed=0).joint(shield, data, ())
    standing = ~found.success
    assert (found.backwards[standing] == params.adaptive.joint.steps).all(), "it went through both models, to the end"
    assert (found.images - data.pixels).abs().max() <= eps + 1e-6
