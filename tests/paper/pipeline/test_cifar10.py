"""The real path: CIFAR-10 images, a real checkpoint and a real CLIP, through the library and through the pipeline.

MULTISHIELD_CIFAR10 and MULTISHIELD_WEIGHTS say where they are (see profiles/cifar10-cpu.yaml).
"""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
import torch

from conftest import CHEAP, copy_project, edit_params, run, run_notebooks
from paper.data import folders, prepare
from paper.models import classifier, zero_shot
from paper.models import clip as clips
from paper.params import Params, read_yaml

pytestmark = pytest.mark.cifar10

SMALL = CHEAP | {
    "dataset.train": 600,
    "dataset.validation": 60,
    "dataset.evaluate": 16,
    "training.resnet20-fgsm.epochs": 1,
    "training.resnet20-fgsm.validation_steps": 2,
    "training.resnet20-fgsm.architecture": "resnet8",
    "alignment.robust.epochs": 1,
    "alignment.robust.validation_steps": 2,
    "adaptive.paper.steps": 10,
    "adaptive.square.queries": 50,
    "adaptive.sanity.images": 16,
}


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """A copy of the project with the profile cifar10-cpu."""
    folder = copy_project(tmp_path_factory.mktemp("cifar10"))
    done = run(folder, "multishield", "profile", "cifar10-cpu")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def source():
    return folders.open_folder(Path(os.environ["MULTISHIELD_CIFAR10"]), "test")


@pytest.fixture(scope="module")
def test_split(source):
    return prepare.read_split(source, torch.arange(len(source)), 32)


def test_the_checkpoint_is_as_good_as_published(real, test_split):
    params = Params.parse(read_yaml(real / "params.yaml")).training["resnet20"]
    model = classifier.read_classifier(Path(params.path), params.architecture, 10, params.mean, params.std)
    accuracy = classifier.accuracy(model, test_split)
    assert accuracy == pytest.approx(0.917, abs=0.03)


def test_the_clip_classifies_and_its_preprocessing_matters(real, source, test_split, monkeypatch):
    monkeypatch.chdir(real)
    params = Params.load().alignment
    clip = clips.read_clip(params)
    classifier.freeze(clip.model)
    text = zero_shot.embed_prompts(clip, source.classes, params.prompts)
    accuracy = classifier.accuracy(zero_shot.align(clip, text), test_split)
    assert accuracy == pytest.approx(0.829, abs=0.05)


@pytest.mark.timeout(1200)
def test_a_classifier_is_trained_on_real_images(real):
    edit_params(real, SMALL | {"classifiers": ["resnet20-fgsm"]})
    run_notebooks(real, until="training")
    history = pd.read_csv(real / "artifacts" / "training" / "resnet20-fgsm" / "history.csv")
    assert history.clean_accuracy.max() > 0.12


@pytest.mark.timeout(1200)
def test_the_pipeline_on_real_images(real):
    edit_params(real, SMALL | {"classifiers": ["resnet20"]})
    run_notebooks(real)
    metrics = json.loads((real / "artifacts" / "report" / "metrics.json").read_text())
    standard = metrics["resnet20"]
    assert standard["baseline"]["clean_accuracy"] >= 0.8
    assert standard["baseline"]["robust_accuracy"] <= 0.1
    assert standard["multishield"]["robust_accuracy"] >= 0.6
    assert standard["joint"]["robust_accuracy"] <= standard["paper"]["robust_accuracy"]
    assert standard["adaptive"]["robust_accuracy"] <= 0.1
