"""The benchmarks run: a renamed parameter or function must not leave them behind."""

import pandas as pd
import pytest
import torch

from conftest import ROOT
from multishield import Ball, Budget, ConfidenceThreshold, Images, Undefended
from multishield.budget import Components, Joint, Square
from multishield.portfolio import Attacker
from paper.models.cifar_resnet import CifarResNet
from paper.pipeline import arithmetic


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    """They are scripts of a project; the arithmetic of this process is chosen already."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(arithmetic, "choose", lambda _: None)


@pytest.fixture
def data():
    return Images(torch.rand(8, 3, 8, 8), torch.arange(8) % 3, torch.arange(8))


def test_the_package_and_evaluate_attack_the_same_network(data):
    import attacks

    network, cheap = CifarResNet(8, 10).eval(), Budget(components=Components(1, 5), square=Square(5))
    for left, forwards, backwards in (
        attacks.package(network, data, 8 / 255, queries=5),
        attacks.ours(Attacker("tiny", cheap, Ball(8 / 255), 0), network, data),
    ):
        assert left.shape == (8,)
        assert forwards >= 8
        assert backwards >= left.sum()
    models, whole = attacks.milliseconds(Pair(network), data.pixels, repeats=1)
    assert min(models, whole) > 0


class Pair(Undefended):
    """A stand-in for the shield: two models."""

    @property
    def alignment(self):
        return self.classifier


def test_the_reference_breaks_what_any_attack_breaks(data, monkeypatch):
    import strength

    cheap = Budget(components=Components(1, 5), joint=Joint(1, 5, 1))
    monkeypatch.setattr(strength, "BUDGET", cheap)
    monkeypatch.setattr(strength, "ALL_TARGETS", cheap.joint)
    defence = ConfidenceThreshold(CifarResNet(8, 10).eval(), 0.0)
    standing, passes = strength.reference(defence, data, Ball(0.5), rounds=2)
    clean = defence(data.pixels).argmax(1)
    assert not standing[(clean != data.labels) & (clean != 10)].any()
    assert passes > 0
    names = [name for name, _ in strength.chosen_defences(Pair(defence), data.pixels, ["alone", "margin", "squeezing"])]
    assert names == ["alone", "margin", "squeezing"]


def test_the_spread_over_seeds():
    import seeds

    rows = [("robust", *figure, 0.1 * seed, 200, seed) for figure in seeds.HEADLINES for seed in range(5)]
    columns = ["classifier", "scenario", "metric", "value", "n", "seed"]
    table = seeds.spread(pd.DataFrame(rows, columns=columns)).set_index(["scenario", "figure"])
    worst = table.loc[("worst case", "robust accuracy")]
    assert (worst["mean"], worst.lowest, worst.highest) == ("20.0", "0.0", "40.0")


def test_every_operation_that_is_hashed_has_a_line_in_the_file():
    import portable

    lines = (ROOT / "benchmarks" / "portable.txt").read_text().splitlines()
    assert [line[18:] for line in lines] == list(portable.operations())
