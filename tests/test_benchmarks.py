"""The benchmarks run: a renamed parameter or function must not leave them behind."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from conftest import ROOT
from multishield import Ball, Budget, Images, Undefended
from multishield.budget import Components, Joint, Paper, Sanity, Square
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


def test_the_reference_attacks_the_survivors(data, monkeypatch):
    import strength

    cheap = Budget(Paper(5), Joint(1, 5, 1), Components(1, 5), sanity=Sanity(1))
    monkeypatch.setattr(strength, "BUDGET", cheap)
    monkeypatch.setattr(strength, "ALL_TARGETS", cheap.joint)
    pair = Pair(CifarResNet(8, 10))
    data = replace(data, labels=pair(data.pixels).argmax(1))
    stage = SimpleNamespace(data=data, ball=Ball(1e-4), params=SimpleNamespace(seed=0))
    for name, defence in strength.chosen_defences(pair, data.pixels, ["alone", "margin"]):
        cells = strength.row("tiny", name, defence, stage, images=8, rounds=1).strip("| ").split(" | ")
        assert cells[:2] == ["tiny", name]
        assert cells[-1] == "8"
        assert float(cells[5].rstrip("%")) <= float(cells[4].rstrip("%")) <= float(cells[3].rstrip("%"))


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
