"""The real path: CIFAR-10 images, a real checkpoint and a real CLIP, through the library and through the pipeline.

MULTISHIELD_CIFAR10 and MULTISHIELD_WEIGHTS say where they are (see profiles/cifar10-checkpoint.yaml).
"""

import json
import os
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from conftest import CHEAP, copy_project, edit_params, run, run_notebooks
from multishield import align_classes
from multishield.forward import accuracy, freeze
from paper.data import datasets, prepare
from paper.models import pretrained
from paper.models.classifier import Classifier
from paper.models.clip import load_clip
from paper.params import Params

pytestmark = pytest.mark.cifar10

SMALL = CHEAP | {"dataset.train": 600, "dataset.validation": 60, "dataset.evaluate": 16}
SMALL |= {"training.resnet20-fgsm.epochs": 1, "training.resnet20-fgsm.validation_steps": 2}
SMALL |= {"training.resnet20-fgsm.architecture": "resnet8", "alignment.robust.epochs": 1}
SMALL |= {"alignment.robust.validation_steps": 2, "adaptive.paper.steps": 10, "adaptive.square.queries": 50}
SMALL |= {"adaptive.sanity.images": 16}


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """A copy of the project with the profile cifar10-checkpoint."""
    folder = copy_project(tmp_path_factory.mktemp("cifar10"))
    done = run(folder, sys.executable, "-m", "paper", "profile", "cifar10-checkpoint")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_checkpoint_and_the_clip_are_as_good_as_published(real, monkeypatch):
    monkeypatch.chdir(real)
    params, source = Params.load(), datasets.open_folder(Path(os.environ["MULTISHIELD_CIFAR10"]), "test")
    images = prepare.read_split(source, torch.arange(len(source)), 32)
    model = freeze(Classifier(*pretrained.load(params.training["resnet20"], 10, "training.resnet20")))
    assert accuracy(model, images) == pytest.approx(0.917, abs=0.03)
    aligned = align_classes(load_clip(params.alignment), source.classes, params.alignment.prompts)
    assert accuracy(aligned, images) == pytest.approx(0.829, abs=0.05), "other preprocessing costs accuracy"


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
    assert standard["no_shield"]["clean_accuracy"] >= 0.8
    assert standard["no_shield"]["robust_accuracy"] <= 0.1
    assert standard["unaware"]["robust_accuracy"] >= 0.6
    assert standard["joint"]["robust_accuracy"] <= standard["paper"]["robust_accuracy"]
    assert standard["worst_case"]["robust_accuracy"] <= 0.1
