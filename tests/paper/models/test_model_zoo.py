"""The model zoo, and its published figures beside measured ones."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
import torch

from multishield import records
from multishield.attacks.apgd import apgd
from multishield.attacks.threat_model import Ball
from multishield.errors import UserError
from multishield.forward import accuracy, device, freeze, outputs
from paper.data.datasets import open_folder
from paper.data.prepare import read_split
from paper.models import model_zoo, pretrained
from paper.models.classifier import Classifier
from paper.models.model_zoo import ENTRIES
from paper.params import DEFAULTS, Params, read_yaml
from paper.params.sections import FromZoo
from paper.report import published

NETWORK = "AutoAttack-ResNet18"


def params(entry=NETWORK, **sections) -> Params:
    """The demo's parameters on CIFAR-10 with one classifier of the model zoo; sections are updated, not replaced."""
    values = read_yaml(DEFAULTS)
    values |= {"classifiers": ["known"], "training": {"known": {"source": "model_zoo", "name": entry}}}
    values["alignment"] = {"source": "open_clip", "prompts": ["a {}"], "model": "RN50", "pretrained": "openai"}
    values["dataset"] |= {"name": "cifar10", "image_size": 32}
    values["baseline"] |= {"attacks": "standard"}
    for section, changes in sections.items():
        values[section] |= changes
    return Params.parse(values)


def compared(root, correct: int, robust: int, n: int, made_by=None, **sections) -> pd.DataFrame:
    """The table of a run in which so many of n images are right, clean and under attack."""
    record = {"architecture": made_by or {"source": "model_zoo", "name": NETWORK}}
    folder = root / "artifacts" / "training" / "known"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classifier.json").write_text(json.dumps(record))
    rows = pd.DataFrame(dict.fromkeys(records.COLUMNS, 0), index=range(n))
    rows = rows.assign(classifier="known", scenario="no_shield", attack="", clean_clip=-1, image=range(n), classes=10)
    rows["clean_decision"], rows["attacked_decision"] = ([int(i >= k) for i in range(n)] for k in (correct, robust))
    return published.compare(params(**sections), records.metrics(rows))


def test_every_entry_has_its_setting():
    assert len(ENTRIES) == 13
    for entry in ENTRIES.values():
        assert 0 <= entry.autoattack <= entry.clean <= 100
        assert entry.preprocessing[0] == (32 if entry.dataset == "cifar10" else 224)
        radius = 127.5 if entry.norm == "L2" else 8 if entry.dataset == "cifar10" else 4
        assert entry.eps * 255 == pytest.approx(radius)
        assert "." in entry.reference


def test_an_unknown_name_or_another_data_set_is_refused():
    with pytest.raises(UserError, match=r"training.known.name is 'Carmon2019', .*did you mean Carmon2019Unlabeled"):
        model_zoo.check(params("Carmon2019"))
    with pytest.raises(UserError, match=r"accepted are Standard, Carmon2019Unlabeled"):
        model_zoo.find("a", "???")
    for name in ("cifar10", "folder", "mine:loader"):
        model_zoo.check(params(dataset={"name": name}))
    with pytest.raises(UserError, match=r"a classifier of cifar10, but dataset.name is 'stl10'"):
        model_zoo.check(params(dataset={"name": "stl10"}))


def test_published_figures_agree_or_differ(project_root):
    table = compared(project_root, 94, 30, 100)
    assert table.verdict.tolist() == ["agrees", "differs"]
    assert table.notes.tolist() == ["", ""]
    assert table.measured[0] == "94.0 [87.5, 97.2]"
    assert table.N.tolist() == [100, 100]
    own = compared(project_root, 94, 30, 100, dataset={"name": "folder"})
    assert own.verdict.tolist() == ["agrees", "differs"]
    assert "taken to be test images of cifar10" in own.notes[0]


@pytest.mark.parametrize(
    ("changes", "words", "clean_too"),
    [
        ({"threat_model": {"eps": "4/255"}}, "threat model Linf 4/255 instead of Linf 8/255", False),
        ({"baseline": {"attacks": ["apgd-ce"]}}, "AutoAttack apgd-ce instead of standard", False),
        ({"dataset": {"image_size": 64}}, "image size 64 instead of 32", True),
        ({"dataset": {"name": "stl10"}}, "data set stl10 instead of cifar10", True),
    ],
)
def test_another_setting_is_no_comparison(project_root, changes, words, clean_too):
    clean, attacked = compared(project_root, 0, 0, 50, **changes).to_dict("records")
    assert words in attacked["notes"]
    assert attacked["verdict"] == "no comparison"
    assert (clean["verdict"] == "no comparison") == clean_too


def test_the_published_preprocessing_of_imagenet_is_compared(project_root):
    made_by = {"source": "model_zoo", "name": "Singh2023Revisiting_ViT-B-ConvStem"}
    same = {"name": "imagenet", "image_size": 224, "resize": 256, "interpolation": "bicubic"}
    assert compared(project_root, 1, 0, 2, made_by, dataset=same).notes[0] == ""
    plain = same | {"resize": None, "interpolation": "bilinear"}
    notes = compared(project_root, 1, 0, 2, made_by, dataset=plain).notes[0]
    assert notes == "shorter side before the crop 224 instead of 256; interpolation bilinear instead of bicubic"


def test_a_classifier_of_no_zoo_has_no_table(project_root):
    assert compared(project_root, 1, 0, 2, {"source": "train", "architecture": "resnet8"}).empty


@pytest.mark.cifar10
def test_the_network_that_autoattack_ships_is_as_published_on_real_images():
    section = FromZoo(source="model_zoo", name=NETWORK)
    model = freeze(Classifier(*pretrained.load(section, 10, "training.known"))).to(device())
    source = open_folder(Path(os.environ["MULTISHIELD_CIFAR10"]), "test")
    data = read_split(source, torch.arange(len(source)), 32)
    low, high = records.wilson(round(accuracy(model, data) * len(data)), len(data))
    assert low <= ENTRIES[NETWORK].clean / 100 <= high
    few = data[:16]
    result = apgd(model, few.pixels, few.labels, ball=Ball(8 / 255), seed=0, ids=few.ids, steps=20)
    right = outputs(model, few.pixels).argmax(1) == few.labels
    assert right.sum() >= 12
    assert (outputs(model, result.images)[right].argmax(1) != few.labels[right]).all()
