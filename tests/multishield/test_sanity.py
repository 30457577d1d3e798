"""Sanity rules: silent on a sound evaluation, and a defence that masks gradients is flagged."""

import numpy as np
import pandas as pd
import pytest
import torch

import multishield
from conftest import ROOT
from multishield import records, sanity
from multishield.attacks.apgd import apgd
from multishield.attacks.threat_model import Ball
from multishield.images import Split
from multishield.shield import MultiShield
from multishield.verdicts import records_of
from paper.params import Params, read_yaml


class Linear(torch.nn.Module):
    def __init__(self, scale, seed=0):
        super().__init__()
        weight = scale * torch.randn(4, 3 * 8 * 8, generator=torch.Generator().manual_seed(seed))
        self.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, x):
        return (x.flatten(1) - 0.5) @ self.weight.T


class Masked(torch.nn.Module):
    """A linear model behind coarse rounding: as fragile as before, and its gradient is zero everywhere."""

    def __init__(self, model):
        super().__init__()
        self.model, self.weight = model, model.weight

    def forward(self, x):
        return self.model((x * 64).round() / 64 + 0 * x)


def evaluate(shield):
    """The rules as the report has them: scenario 3 on 40 images, and scenario 1."""
    params = Params.parse(read_yaml(ROOT / "profiles" / "demo.yaml")).adaptive
    images = (255 * (0.2 + 0.6 * torch.rand(40, 3, 8, 8))).to(torch.uint8)
    labels = shield.classifier(images.float() / 255).argmax(1)
    data, ball = Split(images, labels, torch.arange(40)), Ball(8 / 255)
    unaware = apgd(shield.classifier, data.pixels, labels, eps=ball.eps, seed=0, ids=data.ids)
    result = multishield.evaluate(shield, data.pixels, labels, settings=params, known=[unaware])
    rows = [records_of("model", "baseline", shield.classifier, data, unaware, ball), result.records]
    return sanity.check(pd.concat(rows, ignore_index=True), result.runs, 4, np.eye(4)).set_index("rule")


def test_a_sound_evaluation_violates_nothing(project_root):
    v = Linear(0.02, 1)
    v.weight += 0.01 * Linear(1.0, 2).weight
    findings = evaluate(MultiShield(Linear(1.0, 2), v, 0.001))
    assert findings.holds.all(), findings.finding.tolist()
    assert set(findings.index) == set(sanity.RULES)


def test_masked_gradients_are_flagged(project_root):
    v = Linear(0.02, 1)
    v.weight += 0.01 * Linear(1.0, 2).weight
    findings = evaluate(MultiShield(Masked(Linear(1.0, 2)), Masked(v), 0.001))
    assert not findings.holds["white box beats black box"]
    assert not findings.holds["large radius, none robust"]


def rows(scenario, broken, attack="joint", count=4):
    """Records of `count` images of class 0, the first `broken` of them accepted as class 1."""
    frame = {name: [0] * count for name in records.COLUMNS}
    frame |= {"classifier": "c", "scenario": scenario, "image": range(count), "attack": attack}
    frame["attacked_decision"] = [1] * broken + [0] * (count - broken)
    return pd.DataFrame(frame)


SOUND = {"baseline": 4, "multishield": 0, "paper": 1, "joint": 2, "denial": 0, "adaptive": 2}
RUNS = {"eps x 0.5": 1, "eps x 2": 3, "large eps": 4, "half the steps": 2, "classifier, eps x 0.5": 2}
RUNS |= {"CLIP, eps x 0.5": 4}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({}, None),
        ({"paper": 3, "adaptive": 3}, "stronger than the paper's"),
        ({"adaptive": 1}, "worst case is worst"),
        ({"eps x 0.5": 3}, "larger radius, fewer robust"),
        ({"large eps": 3}, "large radius, none robust"),
        ({"half the steps": 3}, "more steps do not hurt"),
        ({"baseline": 1}, "broken on the classifier too"),
    ],
)
def test_each_rule_by_hand(change, rule):
    counts = {**SOUND, **RUNS, **change}
    findings = sanity.check(
        pd.concat([rows(s, counts[s]) for s in SOUND]), pd.concat([rows(s, counts[s]) for s in RUNS]), 10, np.eye(10)
    )
    assert findings[~findings.holds].rule.tolist() == ([rule] if rule else [])


def test_one_attack_must_be_enough_and_a_shield_no_better_than_half_the_radius():
    few = {"baseline": 400, "multishield": 0, "paper": 100, "joint": 197, "denial": 0, "adaptive": 200}
    runs = {"eps x 0.5": 100, "eps x 2": 300, "large eps": 400, "half the steps": 190, "classifier, eps x 0.5": 200}
    runs |= {"CLIP, eps x 0.5": 400}

    def frame(part, changes):
        return pd.concat([rows(s, changes.get(s, n), count=400) for s, n in part.items()])

    def violated(**changes):
        findings = sanity.check(frame(few, changes), frame(runs, changes), 10, np.eye(10))
        return findings[~findings.holds].rule.tolist()

    assert violated() == ["one attack is enough"]  # three images in 400
    assert violated(joint=198) == []
    assert violated(joint=198, **{"classifier, eps x 0.5": 230}) == []  # 42.5 % and 50 %: the intervals touch
    assert violated(joint=198, **{"classifier, eps x 0.5": 300}) == ["half the radius"]
    # A robust CLIP may hold what the classifier does not.
    assert violated(joint=198, **{"classifier, eps x 0.5": 400, "CLIP, eps x 0.5": 200}) == []


def test_what_only_the_black_box_broke_is_a_violation():
    scenarios = [rows(s, n) for s, n in SOUND.items()]
    scenarios[list(SOUND).index("adaptive")].loc[0, "attack"] = "square"
    findings = sanity.check(pd.concat(scenarios), pd.concat([rows(s, n) for s, n in RUNS.items()]), 10, np.eye(10))
    assert findings[~findings.holds].rule.tolist() == ["white box beats black box"]


@pytest.mark.parametrize(
    ("rule", "column", "value"),
    [
        ("same again", "change", 0.01),
        ("finite", "gap_attacked", float("nan")),
        ("better than chance", "clean_decision", 3),
    ],
)
def test_what_the_models_themselves_break_is_a_violation(rule, column, value):
    frame = pd.concat([rows(s, n) for s, n in SOUND.items()]).reset_index(drop=True).astype({column: float})
    frame.loc[frame.scenario == ("baseline" if column == "clean_decision" else "paper"), column] = value
    findings = sanity.check(frame, pd.concat([rows(s, n) for s, n in RUNS.items()]), 10, np.eye(10))
    assert findings[~findings.holds].rule.tolist() == [rule]


def test_two_classes_with_one_embedding_are_a_violation():
    text = np.eye(10)[[0, 0, *range(2, 10)]]
    runs = pd.concat([rows(s, n) for s, n in RUNS.items()])
    findings = sanity.check(pd.concat([rows(s, n) for s, n in SOUND.items()]), runs, 10, text @ text.T)
    assert findings[~findings.holds].rule.tolist() == ["own embeddings"]


def test_every_rule_has_its_page():
    page = (ROOT / "docs" / "sanity.md").read_text()
    for rule in sanity.RULES:
        section = page.split(f"## {rule}\n")[1].split("\n## ")[0]
        assert all(word in section for word in ("**Raised if**", "**What it means**", "**What to do**"))
