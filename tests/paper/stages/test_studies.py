"""Studies on images and models whose worst case is known: grey images, decided by their brightness."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from multishield import AttackedImages, Ball, Budget, Images, MultiShield
from multishield.budget import Components, Joint
from multishield.portfolio import Attacker
from multishield.zero_shot import align, embed_prompts
from paper.models.clip import small_clip
from paper.params.sections import PromptSet, Studies
from paper.report import figures, tables
from paper.stages import studies
from small import Brightness, grey

EPS, SHIFT, SCALE = 8 / 255, 0.02, 0.1
CLASSES, OWN = ["dark", "light"], {"templates": ["a {} photo"]}
PROMPTS = {"own": OWN, "CLIP's 80": {"templates": "openai"}, "wrong": OWN | {"names": "shifted"}}
RADII = ["16/255", "2/255", "8/255"]
VALUES = {"prompts": PROMPTS, "tolerance": [0.0, 0.002, 0.01], "eps": RADII, "sigma": [0.3]}
VARIED = Studies.model_validate({"images": 40, **VALUES})


@pytest.fixture
def study(tmp_path):
    """Runs a study of a shield on 42 grey images, of which it takes 40; returns its rows and the images' levels."""
    away = torch.linspace(0.0005, 0.0395, 21)
    level = torch.cat([0.5 - away, 0.5 + away])
    data = Images(grey(*level.tolist(), side=32), (level > 0.5).long(), torch.arange(42))
    none, moved = torch.zeros(42, dtype=torch.long), data.pixels - (data.pixels - 0.5).sign() * EPS
    names = ["no_shield" if reached else "" for reached in (level - 0.5).abs() <= EPS]
    unaware = AttackedImages(moved, names, none, none)

    def run(name, shield):
        stage = object.__new__(studies.Stage)
        params = SimpleNamespace(studies=VARIED, classifiers=["levels"], seed=0)
        vars(stage).update(params=params, item=name, folder=tmp_path)
        vars(stage).update(data=data, classes=CLASSES, unaware_of=lambda name: unaware, shield_of=lambda name: shield)
        budget = Budget(joint=Joint(1, 20), components=Components(1, 20))
        stage.attacker_of = lambda name: Attacker(name, budget, Ball(EPS), 0)
        rows = stage.run()
        assert (tmp_path / "records.csv").is_file()
        assert set(rows.study) == {name}
        return rows, level[stage.chosen]

    return run


def robust(rows, value, of="shield"):
    """By image: whether nothing is accepted as a wrong class."""
    rows = rows[(rows.value == value) & (rows.of == of)]
    assert len(rows) == 40, "as many of each class"
    return torch.tensor(((rows.attacked_decision == rows.label) | (rows.attacked_decision == 2)).tolist())


def test_a_tolerance_brings_clips_boundary_nearer(study):
    # Dark images must pass both boundaries, and CLIP's lies higher, less the share that the tolerance allows.
    rows, level = study("tolerance", MultiShield(Brightness(), Brightness(SCALE, 0.5 + SHIFT), 0.5))
    for tolerance in VARIED.tolerance:
        boundary = max(0.5, 0.5 + SHIFT - tolerance / (2 * SCALE))
        expected = torch.where(level < 0.5, boundary - level > EPS, level - 0.5 > EPS)
        assert torch.equal(robust(rows, f"{tolerance:g}"), expected), tolerance


def test_every_radius_has_its_worst_case(study):
    rows, level = study("eps", MultiShield(Brightness(), Brightness(SCALE, 0.5 + SHIFT), 0.0))
    assert list(dict.fromkeys(rows.value)) == ["2/255", "8/255", "16/255"]
    away, dark = (level - 0.5).abs(), level < 0.5
    for eps in VARIED.eps:
        value = f"{255 * eps:g}/255"
        assert torch.equal(robust(rows, value, "classifier"), away > eps), value
        # FGSM is exact on one linear model, and blind to the other.
        for of in ("shield", "shield, FGSM on the classifier"):
            assert torch.equal(robust(rows, value, of), away + SHIFT * dark > eps), value
        assert (rows[rows.value == value].distance <= eps + 1e-6).all()


def test_wrong_names_reject_everything(study, monkeypatch):
    torch.manual_seed(0)
    clip = small_clip("resnet8", 32)
    text = embed_prompts(clip, CLASSES, ["a {} photo"])

    class Tower(nn.Module):
        """The embedding of an image lies between its classes' texts."""

        def forward(self, x):
            share = x.mean((1, 2, 3)).view(-1, 1) / 4 + 0.5  # back to pixels in [0,1]
            return share * text[1] + (1 - share) * text[0]

    clip.model.visual = Tower()
    monkeypatch.setattr(studies, "load_pipeline_clip", lambda: clip)
    rows, level = study("prompts", MultiShield(Brightness(), align(clip, text), 0.0))
    similarity = rows.drop_duplicates("value").set_index("value").similarity
    assert similarity[["own", "wrong"]].tolist() == pytest.approx([float(text[0] @ text[1])] * 2, abs=1e-5)
    table = studies.table(rows).set_index(["value", "metric"]).ratio
    assert (table["own", "clean_rejection"], table["wrong", "clean_rejection"]) == (0, 1)
    # It rejects everything but exact grey, where both models are undecided and the attack leads the two nearest images.
    assert table["wrong", "robust_accuracy"] >= 0.9
    assert torch.equal(robust(rows, "own"), (level - 0.5).abs() > EPS)


def test_smoothed_models_are_bracketed_on_a_tenth_of_the_images(study):
    # Brightness is the mean of 3 x 32 x 32 pixels: L2 distance is its own times the root of their number, 55.4.
    rows, level = study("sigma", MultiShield(Brightness(), Brightness(SCALE, 0.5 + SHIFT), 0.0))
    away, models = 55.4 * (level[:4] - 0.5).abs().double().numpy(), ["levels", "levels with the shield", "CLIP"]
    for model, distance in zip(models, (away, away + 55.4 * SHIFT, away + 55.4 * SHIFT), strict=True):
        of = rows[rows.classifier == model].reset_index()
        assert ((of.radius_held < distance) & (distance < of.broken_at)).all()
        assert (of.broken_at[distance < 0.3 * 1.5 - 0.15] < 0.45 + 1e-6).all()
    table = studies.bounds(rows)
    assert tables.bounds(table)["not broken by the attack"].tolist()[::3] == ["100.0 [51.0, 100.0]"] * 3
    assert [axis.get_title() for axis in figures.bounds(table).axes] == models


def test_sets_of_prompts():
    eighty, three = studies.templates(PromptSet(templates="openai")), ["ant", "bee", "cow"]
    assert len(eighty) == 80
    assert all(template.count("{}") == 1 for template in eighty)
    assert studies.class_names(PromptSet(templates=["{}"], names="shifted"), three) == ["bee", "cow", "ant"]
    numbers = studies.class_names(PromptSet(templates=["{}"], names="numbers"), three)
    assert numbers == ["object 1", "object 2", "object 3"]
    assert studies.class_names(PromptSet(templates=["{}"]), three) == three
