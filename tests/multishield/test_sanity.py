"""Sanity rules: silent on a sound evaluation, and each is violated by its own fault."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from multishield import Ball, Budget, Images, MultiShield, apgd, evaluate, sanity
from multishield.budget import Components, Denial, Joint, Paper, Sanity, Square
from multishield.records import COLUMNS, records_of
from small import Linear, inside

QUICK = Budget(Paper(5), Joint(1, 8), Components(1, 8), Denial(5), Square(60), Sanity(10))


class Masked(nn.Sequential):
    """A model behind coarse rounding: as fragile as before, and its gradient is zero everywhere."""

    def forward(self, x):
        return super().forward((x * 64).round() / 64 + 0 * x)


def findings(wrap):
    """The rules on a shield of two linear models, with the classifier's own attack as scenario 1."""
    classifier, alignment = Linear(4, 192, seed=2), Linear(4, 192, 0.02, seed=1)
    alignment.weight += 0.01 * classifier.weight
    shield, x = MultiShield(wrap(classifier), wrap(alignment), 0.001), inside(24, side=8)
    data, ball = Images(x, shield.classifier(x).argmax(1), torch.arange(24)), Ball(8 / 255)
    unaware = apgd(shield.classifier, x, data.labels, ball=ball, seed=0, ids=data.ids)
    result = evaluate(shield, x, data.labels, budget=QUICK, known=[unaware])
    rows = [records_of("model", "no_shield", shield.classifier, data, unaware, ball), result.records]
    return sanity.check(pd.concat(rows, ignore_index=True), result.runs, np.eye(4)).set_index("rule")


def test_a_sound_evaluation_violates_nothing_and_masked_gradients_are_flagged():
    sound, masked = findings(nn.Sequential), findings(Masked)
    assert sound.holds.all(), sound.finding.tolist()
    assert set(sound.index) == set(sanity.RULES)
    assert not masked.holds[["white box beats black box", "large radius, none robust"]].any()


def rows(counts, total=4):
    """Records of `total` images of class 0 per scenario: so many of them are accepted as class 1."""
    frames = []
    for scenario, broken in counts.items():
        decisions = [1] * broken + [0] * (total - broken)
        row = dict.fromkeys(COLUMNS, 0) | {"classifier": "c", "scenario": scenario, "classes": 10, "attack": "joint"}
        frames.append(pd.DataFrame(row | {"image": range(total), "attacked_decision": decisions}))
    return pd.concat(frames, ignore_index=True)


SOUND = {"no_shield": 4, "unaware": 0, "paper": 1, "joint": 2, "denial": 0, "worst_case": 2}
RUNS = {"eps x 0.5": 1, "eps x 2": 3, "large eps": 4, "half the steps": 2}
RUNS |= {"classifier, eps x 0.5": 2, "CLIP, eps x 0.5": 4}
TEXT = np.eye(10)  # one embedding per class


def violated(records, runs, text=TEXT):
    checked = sanity.check(records, runs, text @ text.T)
    return checked[~checked.holds].rule.tolist()


def changed(counts, changes, total=4):
    return rows({scenario: changes.get(scenario, count) for scenario, count in counts.items()}, total)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({}, None),
        ({"paper": 3, "worst_case": 3}, "stronger than the paper's"),
        ({"worst_case": 1}, "worst case is worst"),
        ({"eps x 0.5": 3}, "larger radius, fewer robust"),
        ({"large eps": 3}, "large radius, none robust"),
        ({"half the steps": 3}, "more steps do not hurt"),
        ({"no_shield": 1}, "broken on the classifier too"),
    ],
)
def test_each_rule_by_hand(change, rule):
    assert violated(changed(SOUND, change), changed(RUNS, change)) == ([rule] if rule else [])


def test_one_attack_must_be_enough_and_a_shield_no_better_than_half_the_radius():
    many = {"no_shield": 400, "unaware": 0, "paper": 100, "joint": 197, "denial": 0, "worst_case": 200}
    runs = {"eps x 0.5": 100, "eps x 2": 300, "large eps": 400, "half the steps": 190}
    runs |= {"classifier, eps x 0.5": 200, "CLIP, eps x 0.5": 400}

    def of(**changes):
        return violated(changed(many, changes, 400), changed(runs, changes, 400))

    assert of() == ["one attack is enough"]  # three images in 400
    assert of(joint=198) == []
    assert of(joint=198, **{"classifier, eps x 0.5": 230}) == []  # 42.5 % and 50 %: the intervals touch
    assert of(joint=198, **{"classifier, eps x 0.5": 300}) == ["half the radius"]
    # A robust CLIP may hold an image that the classifier does not.
    assert of(joint=198, **{"classifier, eps x 0.5": 400, "CLIP, eps x 0.5": 200}) == []


@pytest.mark.parametrize(
    ("rule", "scenario", "column", "value"),
    [
        ("white box beats black box", "worst_case", "attack", "square"),
        ("finite", "paper", "gap_attacked", float("nan")),
        ("better than chance", "no_shield", "clean_decision", 3),
    ],
)
def test_faults_of_single_rows_are_violations(rule, scenario, column, value):
    frame = rows(SOUND).astype({"gap_attacked": float})
    frame.loc[frame.scenario == scenario, column] = value
    assert violated(frame, rows(RUNS)) == [rule]


def test_two_classes_with_one_embedding_are_a_violation():
    assert violated(rows(SOUND), rows(RUNS), TEXT[[0, 0, *range(2, 10)]]) == ["own embeddings"]


def test_every_rule_is_explained():
    page = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text()
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in page.splitlines() if line[:1] == "|"]
    explained = {row[0]: row[1:] for row in rows if len(row) == 4}
    for rule in sanity.RULES:  # violated if, what it means, what to do
        assert all(explained[rule])
