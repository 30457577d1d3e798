"""Studies on images and models whose worst case is known: grey images, decided by their brightness."""

import pytest
import torch
from torch import nn

from multishield.attacks.threat_model import Ball
from multishield.images import AttackedImages, Split
from multishield.portfolio import Attacker
from multishield.resume import kept_in
from multishield.shield import MultiShield
from paper.models.clip import build_clip
from paper.models.zero_shot import align, embed_prompts
from paper.params import Adaptive, PromptSet, Studies
from paper.stages import studies
from paper.training.clip import small_config

EPS, SHIFT, SCALE = 8 / 255, 0.02, 0.1
CLASSES = ["dark", "light"]
SETTINGS = Adaptive.model_validate(
    {
        "paper": {"steps": 5},
        "joint": {"targets": 1, "steps": 20, "restarts": 1},
        "parts": {"targets": 1, "steps": 20},
        "denial": {"steps": 5},
        "square": {"queries": 1},
        "sanity": {"images": 1},
    }
)
VARIED = Studies.model_validate(
    {
        "images": 40,
        "prompts": {
            "own": {"templates": ["a {} photo"]},
            "CLIP's 80": {"templates": "openai"},
            "wrong": {"templates": ["a {} photo"], "names": "shifted"},
        },
        "tolerance": [0.0, 0.002, 0.01],
        "eps": ["16/255", "2/255", "8/255"],
    }
)


class Brightness(nn.Module):
    """Class 1 where the image is brighter than `boundary`, class 0 elsewhere; the scores say by how much."""

    def __init__(self, scale=1.0, boundary=0.5):
        super().__init__()
        self.scale, self.boundary = scale, boundary

    def forward(self, x):
        level = self.scale * (x.mean((1, 2, 3)) - self.boundary)
        return torch.stack([-level, level], 1)


@pytest.fixture
def data():
    away = torch.linspace(0.0005, 0.0395, 21)
    level = torch.cat([0.5 - away, 0.5 + away])
    return Split(level.view(-1, 1, 1, 1).expand(-1, 3, 32, 32).clone(), (level > 0.5).long(), torch.arange(42))


def run(name, data, shield, clip=None):
    none = torch.zeros(len(data), dtype=torch.long)
    reached = (data.pixels - 0.5).abs().amax((1, 2, 3)) <= EPS
    moved = data.pixels - (data.pixels - 0.5).sign() * EPS
    baseline = AttackedImages(moved, ["baseline" if r else "" for r in reached.tolist()], none, none)
    with kept_in(None):
        attacker = Attacker("levels", SETTINGS, Ball(EPS), 0)
        return studies.study(name, attacker, shield, data, VARIED, baseline, clip, CLASSES)


def robust(rows, value, of="shield"):
    """By image: whether nothing is accepted as a wrong class."""
    rows = rows[(rows.value == value) & (rows.of == of)]
    return torch.tensor(((rows.attacked_decision == rows.label) | (rows.attacked_decision == 2)).tolist())


def level_of(data):
    return data.pixels.mean((1, 2, 3))[:40]


def test_a_tolerance_brings_clips_boundary_nearer(data):
    # Dark images must pass both boundaries, and CLIP's lies higher, less what the tolerance allows.
    rows = run("tolerance", data, MultiShield(Brightness(), Brightness(SCALE, 0.5 + SHIFT), 0.5))
    assert len(rows) == 3 * 40, "the first images alone"
    for tolerance in VARIED.tolerance:
        boundary = max(0.5, 0.5 + SHIFT - tolerance / (2 * SCALE))
        dark, level = data.labels[:40] == 0, level_of(data)
        expected = torch.where(dark, boundary - level > EPS, level - 0.5 > EPS)
        assert torch.equal(robust(rows, f"{tolerance:g}"), expected), tolerance


def test_every_radius_has_its_worst_case(data):
    rows = run("eps", data, MultiShield(Brightness(), Brightness(SCALE, 0.5 + SHIFT), 0.0))
    assert list(dict.fromkeys(rows.value)) == ["2/255", "8/255", "16/255"]
    away, dark = (level_of(data) - 0.5).abs(), data.labels[:40] == 0
    for eps in VARIED.eps:
        value = f"{255 * eps:g}/255"
        assert torch.equal(robust(rows, value, "classifier"), away > eps), value
        assert torch.equal(robust(rows, value), away + SHIFT * dark > eps), value
        # FGSM is exact on one linear model, and blind to the other.
        assert torch.equal(robust(rows, value, "shield, FGSM"), away + SHIFT * dark > eps), value
        assert (rows[rows.value == value].distance <= eps + 1e-6).all()


def test_wrong_names_reject_everything(data):
    torch.manual_seed(0)
    clip = build_clip(small_config("test_resnet", 32), antialias=True)
    text = embed_prompts(clip, CLASSES, ["a {} photo"])

    class Tower(nn.Module):
        """The embedding of an image lies between its classes' texts."""

        def forward(self, x):
            share = x.mean((1, 2, 3)).view(-1, 1) / 4 + 0.5  # back to pixels in [0,1]
            return share * text[1] + (1 - share) * text[0]

    clip.model.visual = Tower()
    rows = run("prompts", data, MultiShield(Brightness(), align(clip, text), 0.0), clip)
    similarity = rows.drop_duplicates("value").set_index("value").similarity
    assert similarity["own"] == pytest.approx(float(text[0] @ text[1]), abs=1e-5)
    assert similarity["wrong"] == pytest.approx(similarity["own"], abs=1e-5)
    table = studies.table(rows, 2).set_index(["value", "metric"]).ratio
    assert table["own", "clean_rejection"] == 0
    assert table["wrong", "clean_rejection"] == 1
    # It rejects everything but exact grey, where both models are undecided and the attack leads the two nearest images.
    assert table["wrong", "robust_accuracy"] >= 0.9
    away = (level_of(data) - 0.5).abs()
    assert torch.equal(robust(rows, "own"), away > EPS)


def test_sets_of_prompts():
    assert len(studies.templates(PromptSet(templates="openai"))) == 80
    assert all(t.count("{}") == 1 for t in studies.templates(PromptSet(templates="openai")))
    three = ["ant", "bee", "cow"]
    assert studies.called(PromptSet(templates=["{}"], names="shifted"), three) == ["bee", "cow", "ant"]
    assert studies.called(PromptSet(templates=["{}"], names="numbers"), three) == ["object 1", "object 2", "object 3"]
    assert studies.called(PromptSet(templates=["{}"]), three) == three
