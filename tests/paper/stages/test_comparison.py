"""Defences at equal clean rejection, against answers in closed form."""

import pandas as pd
import pytest
import torch
from torch import nn

from multishield import shards
from multishield.attacks.threat_model import Ball
from multishield.evaluation import DEFAULTS
from multishield.images import AttackedImages, Split
from multishield.portfolio import Attacker
from multishield.resume import kept_in
from multishield.shield import MultiShield
from paper.params import Comparison
from paper.stages import comparison

EPS = 8 / 255
WANTED = [0.02, 0.1, 0.2]


class Brightness(nn.Module):
    """Class 1 where the image is brighter than grey, class 0 elsewhere; the scores say by how much, times `scale`."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        level = self.scale * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([-level, level], 1)


def levels(*values):
    """Grey images of these levels, labelled by the side of 0.5 that they are on."""
    level = torch.tensor(values)
    images = level.view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()
    return Split(images, (level > 0.5).long(), torch.arange(len(level)))


def beyond_grey(data):
    """What breaks the classifier alone, where eps reaches."""
    away = data.pixels - 0.5
    names = ["baseline" if reached else "" for reached in (away.abs().amax((1, 2, 3)) <= EPS).tolist()]
    images = data.pixels - away.sign() * EPS
    none = torch.zeros(len(data), dtype=torch.long)
    return AttackedImages(images, names, none, none)


def compared(validation, data):
    shield = MultiShield(Brightness(), Brightness(0.1), 0.0)
    params = Comparison.model_validate({"rejection": WANTED, "attack": {"targets": 1, "steps": 20}})
    with kept_in(None):
        attacker = Attacker("levels", DEFAULTS, Ball(EPS), 0)
        pool = dict.fromkeys(("baseline", "on CLIP", "adaptive"), beyond_grey(data))
        return comparison.compare(attacker, shield, data, validation, params, pool)


@pytest.fixture(scope="module")
def found():
    """The lead is 2 |level - 0.5|, from 0.002 to 0.2 among the validation images."""
    distance = torch.linspace(0.001, 0.1, 100)
    validation = levels(*(0.5 + distance * torch.tensor([-1, 1]).repeat(50)).tolist())
    away = torch.linspace(0.0005, 0.0745, 75)
    data = levels(*(0.5 - away).tolist(), *(0.5 + away).tolist())
    return validation, data, compared(validation, data)


# With these two models each of them is a threshold on the same lead.
SAME = (
    "logit margin",
    "softmax",
    "consistency",
    "Multi-Shield",
    "Multi-Shield, margins",
    "CLIP's margin",
    "log-probabilities",
)


@pytest.mark.parametrize("defence", SAME)
@pytest.mark.parametrize("wanted", WANTED)
def test_one_attack_on_the_strictest_threshold_is_the_exact_worst_case_at_all(found, defence, wanted):
    validation, data, result = found
    rows = result.rows[(result.rows.defence == defence) & (result.rows.wanted == wanted)]
    margin = (validation.pixels.mean((1, 2, 3)) - 0.5).abs().sort().values
    # The largest threshold that rejects no more than is wanted: just at the next image's lead.
    threshold = margin[round(wanted * len(margin))]
    away = (data.pixels.mean((1, 2, 3)) - 0.5).abs()
    border = (away + threshold - EPS).abs() > 1e-4
    assert (~border).sum() <= 2, "hardly an image lies on the border"
    rejected = torch.tensor((rows.clean_decision == 2).to_numpy())
    assert torch.equal(rejected[border], (away < threshold)[border])
    broken = torch.tensor(comparison.broken(rows).to_numpy())
    assert torch.equal(broken[border], (away + threshold <= EPS)[border])
    assert 0 < broken.sum() < len(broken)


def test_the_shields_own_rejection_is_one_of_the_levels(found):
    """Models that always agree reject nothing at the shield's tolerance."""
    _, data, result = found
    rows = result.rows[(result.rows.defence == "Multi-Shield") & result.rows.own]
    assert set(rows.wanted) == {0.0}
    away = (data.pixels.mean((1, 2, 3)) - 0.5).abs()
    least = 0.001  # the smallest distance of a validation image: what is nearer may be rejected
    assert (rows[(away > least).tolist()].clean_decision == rows[(away > least).tolist()].label).all()
    assert comparison.broken(rows).tolist() == (away + least <= EPS).tolist()


def test_the_table_has_a_row_per_level_and_defence(found):
    table = comparison.table(found[2].rows)
    assert len(table) == 8 * (len(WANTED) + 1)
    assert table.own.sum() == 8
    assert table[table.defence == comparison.REFERENCE].p.isna().all()
    for row in table.itertuples():
        assert row.robust_low <= row.robust <= row.robust_high
        assert row.n == 150


def test_eight_gained_and_one_lost():
    images, names = list(range(12)), ["logit margin", "squeezing"]
    wrong = {"logit margin": [1] * 8 + [0] * 4, "squeezing": [0] * 8 + [1] + [0] * 3}
    columns = {
        "classifier": "c",
        "wanted": 0.1,
        "own": False,
        "label": 0,
        "clean_decision": 0,
        "attack": "",
        "classes": 2,
    }
    frames = [pd.DataFrame({"image": images, "attacked_decision": wrong[n], "defence": n} | columns) for n in names]
    row = comparison.table(pd.concat(frames, ignore_index=True)).set_index("defence").loc["squeezing"]
    assert (row.gained, row.lost) == (8, 1)
    assert row.p == pytest.approx(2 * (1 + 9) / 2**9)


def test_another_familys_images_count_and_their_name_is_told():
    rows = pd.DataFrame(
        {"classifier": "c", "wanted": 0.1, "own": False, "image": [0, 1, 2] * 2, "label": 0, "classes": 2}
        | {"defence": ["logit margin"] * 3 + ["squeezing"] * 3, "clean_decision": [0, 0, 2, 0, 2, 1]}
        | {"attacked_decision": [0, 1, 2, 0, 2, 1], "attack": ["", "joint", "", "", "", "clean"]}
    )
    table = comparison.table(rows).set_index("defence")
    assert table.robust.tolist() == pytest.approx([2 / 3, 2 / 3])
    assert table.rejection.tolist() == pytest.approx([1 / 3, 1 / 3])
    assert table.loc["squeezing", ["gained", "lost"]].tolist() == [1, 1]
    assert table.loc["squeezing"].p == 1.0


def test_without_validation_images_nothing_is_compared(found):
    _, data, _ = found
    result = compared(data[:0], data)
    assert not len(result.rows)
    assert list(result.rows.columns) == list(comparison.COLUMNS)
    assert not result.attacked


def test_part_by_part_it_is_the_same(found, monkeypatch):
    validation, data, whole = found
    monkeypatch.setattr(shards, "AT_ONCE", 40 * data.pixels[0].nbytes)
    parts = compared(validation, data)
    order = ["defence", "wanted", "image"]
    first, second = (of.rows.sort_values(order, ignore_index=True) for of in (whole, parts))
    pd.testing.assert_frame_equal(first, second)
    assert torch.equal(parts.attacked["softmax"].images, whole.attacked["softmax"].images)


def test_an_image_outside_the_ball_is_no_result(found, monkeypatch):
    def too_far(defence, images, labels, watch, **settings):
        none = torch.zeros(len(images), dtype=torch.long)
        watch(torch.arange(len(images)), AttackedImages(images + 2 * EPS, ["far"] * len(images), none, none), 0)

    monkeypatch.setattr(comparison, "one_margin", too_far)
    with pytest.raises(RuntimeError, match=r"attack on logit margin is 0\.0627\d\d away \(eps is 0\.031373\)"):
        compared(found[0], found[1])
