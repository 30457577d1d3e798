"""The benchmarks run: a renamed parameter or function must not leave them behind."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from conftest import ROOT
from multishield import AttackedImages, Ball, Budget, Images, MultiShield
from multishield.budget import Components, Joint, Paper, Sanity
from paper.models.cifar_resnet import CifarResNet
from paper.pipeline import arithmetic


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    """They are scripts of a project; the arithmetic of this process is chosen already."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(arithmetic, "choose", lambda _: None)


@pytest.fixture
def stage():
    """A stage with networks of random weights, whose images are all classified correctly."""
    shield, pixels = MultiShield(CifarResNet(8, 10), CifarResNet(8, 10), 0.1).eval(), torch.rand(6, 3, 8, 8)
    data = Images(pixels, shield.classifier(pixels).argmax(1), torch.arange(6))
    budget = Budget(Paper(5), Joint(1, 5, 1), Components(1, 5), sanity=Sanity(1))
    params = SimpleNamespace(seed=0, adaptive=budget)
    known = AttackedImages.untouched(data)
    return SimpleNamespace(data=data, shield=shield, unaware=known, ball=Ball(1e-4), params=params)


def test_a_classifier_and_a_shield_have_their_rows(stage, monkeypatch, capsys):
    import attacks

    stage.ball = Ball(0.3)  # images that break at once keep the test short
    monkeypatch.setattr(attacks, "stage", lambda *_: stage)
    monkeypatch.setattr(attacks, "load_classifier", lambda *_, fold: stage.shield.classifier)
    for user in (False, True):
        attacks.rows_of_classifier("tiny", 6, 5, user)
    attacks.rows_of_shield("tiny", 6)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert [row[0].split(":")[0] for row in rows] == ["tiny", "tiny", "tiny", "tiny with shield"]
    assert rows[0][1:3] == ["0.0%", "0.0%"]


def test_the_references_attack_the_survivors(stage, monkeypatch):
    import strength

    small = {"BUDGET": stage.params.adaptive, "ALL_TARGETS": stage.params.adaptive.joint, "STEPS": 4, "TRIES": 1}
    for name, value in small.items():
        monkeypatch.setattr(strength, name, value)
    cells = strength.row("tiny", "shield", stage.shield, stage.data, stage.ball).strip("| ").split(" | ")
    assert cells[:2] == ["tiny", "shield"]
    assert cells[3:7] == ["6"] * 4
    assert not strength.foreign(stage.shield, stage.data, Ball(0.3))[0].all()


def test_the_spread_over_seeds():
    import seeds

    rows = [("robust", *figure, 0.1 * seed, 200, seed) for figure in seeds.HEADLINES for seed in range(5)]
    columns = ["classifier", "scenario", "metric", "value", "n", "seed"]
    worst = seeds.spread(pd.DataFrame(rows, columns=columns)).set_index(["scenario", "figure"]).iloc[-1]
    assert (worst["mean"], worst.lowest, worst.highest, worst.seeds) == ("20.0", "0.0", "40.0", 5)


def test_every_operation_that_is_hashed_has_a_line_in_the_file():
    import portable

    lines = (ROOT / "benchmarks" / "portable.txt").read_text().splitlines()
    assert [line[18:] for line in lines] == list(portable.operations())
