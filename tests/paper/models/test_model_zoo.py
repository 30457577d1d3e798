"""The catalogue, and published figures beside measured ones."""

import os
from pathlib import Path

import pandas as pd
import pytest
import torch

from conftest import ROOT
from multishield import records
from multishield.attacks.apgd import apgd
from multishield.errors import UserError
from multishield.forward import accuracy, device, freeze, outputs
from paper.data.folders import open_folder
from paper.data.prepare import read_split
from paper.models import model_zoo, pretrained
from paper.models.classifier import load_classifier, save_classifier, wrap
from paper.models.model_zoo import CATALOGUE
from paper.params import Catalogued, Params, read_yaml
from paper.report import published, report

NETWORK = "AutoAttack-ResNet18"


def params(entry=NETWORK, **sections) -> Params:
    """The demo's parameters on CIFAR-10 with one classifier of the catalogue; sections are updated, not replaced."""
    values = read_yaml(ROOT / "profiles" / "demo.yaml")
    values |= {"classifiers": ["known"], "training": {"known": {"source": "catalogue", "name": entry}}}
    values["alignment"] = {"source": "open_clip", "prompts": ["a {}"], "model": "RN50", "pretrained": "openai"}
    values["dataset"] |= {"name": "cifar10"}
    values["baseline"] |= {"attacks": "standard"}
    for section, changes in sections.items():
        values[section] |= changes
    return Params.parse(values)


def project(root, monkeypatch, entry=NETWORK):
    """A project in which the training stage has described a classifier of the catalogue."""
    (root / "params.yaml").touch()
    (root / "dvc.yaml").touch()
    monkeypatch.chdir(root)
    folder = root / "artifacts" / "training" / "known"
    folder.mkdir(parents=True)
    (folder / "classifier.json").write_text(f'{{"architecture": {{"source": "catalogue", "name": "{entry}"}}}}')


def measured(correct: int, robust: int, n: int) -> pd.DataFrame:
    """Metrics of a baseline with so many images right, clean and under attack."""
    rows = pd.DataFrame(dict.fromkeys(records.COLUMNS, 0), index=range(n))
    rows = rows.assign(classifier="known", scenario="baseline", attack="", clean_clip=-1, image=range(n))
    rows["clean_decision"], rows["attacked_decision"] = ([int(i >= k) for i in range(n)] for k in (correct, robust))
    return records.metrics(rows, 10)


def test_every_entry_has_its_setting():
    assert len(CATALOGUE) == 13
    for entry in CATALOGUE.values():
        assert 0 <= entry.autoattack <= entry.clean <= 100
        assert entry.size == (32 if entry.dataset == "cifar10" else 224)
        radius = 127.5 if entry.norm == "L2" else 8 if entry.dataset == "cifar10" else 4
        assert entry.eps * 255 == pytest.approx(radius)
        assert entry.reference.startswith("https://")


def test_an_unknown_name_is_answered_with_close_ones():
    with pytest.raises(UserError, match=r"training.known.name is 'Carmon2019', .*did you mean Carmon2019Unlabeled"):
        model_zoo.check(params("Carmon2019"))
    with pytest.raises(UserError, match=r"accepted are Standard, Carmon2019Unlabeled"):
        model_zoo.find("a", "???")


def test_a_classifier_of_another_data_set_is_refused_but_not_for_images_of_ones_own():
    model_zoo.check(params())
    for name in ("folder", "mine:loader"):
        model_zoo.check(params(dataset={"name": name}))
    with pytest.raises(UserError, match=r"a classifier of cifar10, but dataset.name is 'stl10'"):
        model_zoo.check(params(dataset={"name": "stl10"}))
    with pytest.raises(UserError, match="tells 10 classes apart, but the data set has 37"):
        pretrained.load(Catalogued(source="catalogue", name=NETWORK), 37, "training.known")


def test_published_figures_agree_or_differ(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)
    table = published.compare(params(), measured(94, 30, 100))
    assert table.verdict.tolist() == ["agrees", "differs"]
    assert table.notes.tolist() == ["", ""]
    assert table.measured[0] == "94.0 [87.5, 97.2]"
    assert table.N.tolist() == [100, 100]
    report.write_published(table)
    file = tmp_path / "artifacts" / "report" / "tables" / "published.csv"
    written = pd.read_csv(file, dtype=str, keep_default_na=False)
    assert written.equals(table.astype(str))


@pytest.mark.parametrize(
    ("changes", "words", "clean_too"),
    [
        ({"threat_model": {"eps": "4/255"}}, "threat model Linf 4/255 instead of Linf 8/255", False),
        ({"baseline": {"attacks": ["apgd-ce"]}}, "apgd-ce instead of standard AutoAttack", False),
        ({"dataset": {"image_size": 64}}, "images of 64 pixels instead of 32", True),
        ({"dataset": {"name": "stl10"}}, "data set stl10 instead of cifar10", True),
    ],
)
def test_another_setting_is_no_comparison(tmp_path, monkeypatch, changes, words, clean_too):
    project(tmp_path, monkeypatch)
    clean, attacked = published.compare(params(**changes), measured(0, 0, 50)).to_dict("records")
    assert words in attacked["notes"]
    assert attacked["verdict"] == "no comparison"
    assert (clean["verdict"] == "no comparison") == clean_too


def test_the_published_preprocessing_of_imagenet_is_compared(tmp_path, monkeypatch):
    entry = "Singh2023Revisiting_ViT-B-ConvStem"
    project(tmp_path, monkeypatch, entry)
    same = {"name": "imagenet", "image_size": 224, "resize": 256, "interpolation": "bicubic"}
    differ = published.differences(CATALOGUE[entry], params(entry, dataset=same))["clean accuracy"]
    assert differ == []
    plain = same | {"resize": None, "interpolation": "bilinear"}
    differ = published.differences(CATALOGUE[entry], params(entry, dataset=plain))["clean accuracy"]
    assert differ == ["shorter side 224 instead of 256 before the crop", "bilinear instead of bicubic resizing"]


def test_images_of_ones_own_are_compared_with_a_note(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)
    table = published.compare(params(dataset={"name": "folder"}), measured(94, 0, 100))
    assert table.verdict.tolist() == ["agrees", "agrees"]
    assert "taken to be test images of cifar10" in table.notes[0]


def test_the_papers_fine_tuned_classifiers_have_a_clean_accuracy(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)
    file = tmp_path / "artifacts" / "training" / "known" / "classifier.json"
    file.write_text('{"architecture": {"source": "finetune", "model": "resnet18"}}')
    for data, measure, verdict, notes in (
        ("pets", 88, "agrees", ""),
        ("caltech101", 50, "differs", "equally many images of each class, though the classes differ in size"),
    ):
        (row,) = published.compare(
            params(dataset={"name": data, "image_size": 224}), measured(measure, 0, 100)
        ).to_dict("records")
        assert (row["figure"], row["verdict"], row["notes"]) == ("clean accuracy", verdict, notes)
    assert published.compare(params(dataset={"name": "food101", "image_size": 224}), measured(9, 0, 10)).empty


def test_without_a_catalogued_classifier_there_is_no_table(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)
    file = tmp_path / "artifacts" / "training" / "known" / "classifier.json"
    file.write_text('{"architecture": {"source": "train", "architecture": "resnet8"}}')
    comparison = published.compare(params(), measured(1, 0, 2))
    assert comparison.empty
    report.write_published(comparison)
    assert not (tmp_path / "artifacts" / "report").exists()


@pytest.fixture
def packaged():
    """The network that AutoAttack's package ships, with its weights."""
    described = Catalogued(source="catalogue", name=NETWORK)
    return freeze(wrap(pretrained.load(described, 10, "training.known"))).to(device()), described


def test_the_packaged_network_round_trips(tmp_path, monkeypatch, packaged):
    (tmp_path / "params.yaml").touch()
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    model, described = packaged
    save_classifier(model, described, 10, tmp_path / "artifacts" / "training" / "known")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(outputs(load_classifier("known"), x), outputs(model, x))
    leaf = x.to(device()).requires_grad_()
    assert torch.autograd.grad(model(leaf).max(), leaf)[0].abs().sum() > 0


@pytest.mark.cifar10
def test_the_packaged_network_is_as_published_on_real_images(packaged):
    model, _ = packaged
    source = open_folder(Path(os.environ["MULTISHIELD_CIFAR10"]), "test")
    split = read_split(source, torch.arange(len(source)), 32)
    hits = round(accuracy(model, split) * len(split))
    low, high = records.wilson(hits, len(split))
    assert low <= CATALOGUE[NETWORK].clean / 100 <= high
    few = split[:16]
    result = apgd(model, few.pixels, few.labels, eps=8 / 255, seed=0, ids=few.ids, steps=20)
    right = outputs(model, few.pixels).argmax(1) == few.labels
    assert right.sum() >= 12
    assert (outputs(model, result.images)[right].argmax(1) != few.labels[right]).all()
