"""Defences at equal clean rejection, against answers in closed form."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from multishield import AttackedImages, Ball, Budget, Images, MultiShield, StoredImages
from multishield import images as images_module
from multishield.portfolio import Attacker
from multishield.records import COLUMNS, broken
from paper.params.sections import Comparison
from paper.stages import comparison
from small import Brightness, grey

EPS, WANTED = 8 / 255, [0.02, 0.1, 0.2]


def levels(*values):
    """Grey images of these levels, labelled by the side of 0.5 that they are on."""
    level = torch.tensor(values)
    return Images(grey(*values), (level > 0.5).long(), torch.arange(len(level)))


def beyond_grey(data):
    """Images that break the classifier alone, where eps reaches."""
    away = data.pixels - 0.5
    names = ["no_shield" if reached else "" for reached in (away.abs().amax((1, 2, 3)) <= EPS).tolist()]
    none = torch.zeros(len(data), dtype=torch.long)
    return AttackedImages(data.pixels - away.sign() * EPS, names, none, none)


def compared(validation, data, folder):
    stage = object.__new__(comparison.Stage)
    params = Comparison.model_validate({"rejection": WANTED, "attack": {"targets": 1, "steps": 20}})
    vars(stage).update(params=SimpleNamespace(comparison=params), item="levels", folder=folder, ball=Ball(EPS))
    vars(stage).update(shield=MultiShield(Brightness(), Brightness(0.1), 0.0), data=data, validation=validation)
    stage.earlier = dict.fromkeys(("no_shield", "on CLIP", "worst_case"), beyond_grey(data))
    stage.attacker_of = lambda name: Attacker(name, Budget(), Ball(EPS), 0)
    return stage.compare()


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Validation images, evaluation images, and the rows. The margin is 2 |level - 0.5|, 0.002 to 0.2 at validation."""
    distance = torch.linspace(0.001, 0.1, 100)
    validation = levels(*(0.5 + distance * torch.tensor([-1, 1]).repeat(50)).tolist())
    away = torch.linspace(0.0005, 0.0745, 75)
    data = levels(*(0.5 - away).tolist(), *(0.5 + away).tolist())
    return validation, data, compared(validation, data, tmp_path_factory.mktemp("comparison"))


# With these two models each of them is a threshold on the same margin.
SAME = ("logit margin", "softmax", "consistency", "Multi-Shield", "Multi-Shield, margins", "CLIP's margin")


@pytest.mark.parametrize("defence", [*SAME, "log-probabilities"])
@pytest.mark.parametrize("wanted", WANTED)
def test_one_attack_on_the_strictest_threshold_is_the_exact_worst_case_at_all(known, defence, wanted):
    validation, data, rows = known
    rows = rows[(rows.defence == defence) & (rows.wanted == wanted)]
    margin = (validation.pixels.mean((1, 2, 3)) - 0.5).abs().sort().values
    # The largest threshold that rejects no more than is wanted: just at the next image's margin.
    threshold, away = margin[round(wanted * len(margin))], (data.pixels.mean((1, 2, 3)) - 0.5).abs()
    sure = (away + threshold - EPS).abs() > 1e-4
    assert (~sure).sum() <= 2, "hardly an image lies on the border"
    rejected = torch.tensor((rows.clean_decision == 2).to_numpy())
    assert torch.equal(rejected[sure], (away < threshold)[sure])
    lost = torch.tensor(broken(rows).to_numpy())
    assert torch.equal(lost[sure], (away + threshold <= EPS)[sure])
    assert 0 < lost.sum() < len(lost)


def test_the_shields_own_rejection_is_one_of_the_levels(known):
    """Models that always agree reject nothing at the shield's tolerance."""
    _, data, rows = known
    rows = rows[(rows.defence == "Multi-Shield") & rows.own]
    assert set(rows.wanted) == {0.0}
    away, least = (data.pixels.mean((1, 2, 3)) - 0.5).abs(), 0.001  # of a validation image; nearer ones may be rejected
    assert (rows[(away > least).tolist()].clean_decision == rows[(away > least).tolist()].label).all()
    assert broken(rows).tolist() == (away + least <= EPS).tolist()


def test_the_table_has_a_row_per_level_and_defence(known):
    table = comparison.table(known[2])
    assert len(table) == 8 * (len(WANTED) + 1)
    assert table.own.sum() == 8
    assert table[table.defence == comparison.REFERENCE].p.isna().all()
    assert ((table.robust_low <= table.robust) & (table.robust <= table.robust_high)).all()
    assert set(table.n) == {150}


@pytest.mark.parametrize(
    ("reference", "other", "gained", "lost", "p"),
    [([1] * 8 + [0] * 4, [0] * 8 + [1] + [0] * 3, 8, 1, 2 * (1 + 9) / 2**9), ([0, 1, 2], [0, 2, 1], 1, 1, 1.0)],
)
def test_mcnemars_test_by_hand(reference, other, gained, lost, p):
    """Decisions under attack on images of class 0 out of two, 2 being "rejected"."""
    frames = [
        pd.DataFrame({"image": range(len(decisions)), "attacked_decision": decisions, "defence": name})
        for name, decisions in (("logit margin", reference), ("squeezing", other))
    ]
    constant = {"classifier": "c", "wanted": 0.1, "own": False, "label": 0, "clean_decision": 0, "classes": 2}
    row = (
        comparison.table(pd.concat(frames, ignore_index=True).assign(**constant)).set_index("defence").loc["squeezing"]
    )
    assert (row.gained, row.lost) == (gained, lost)
    assert row.p == pytest.approx(p)
    assert row.robust == pytest.approx(sum(d != 1 for d in other) / len(other))


def test_few_validation_images_compare_nothing(known, tmp_path):
    rows = compared(known[1][:0], known[1], tmp_path)
    assert not len(rows)
    assert list(rows.columns) == [*COLUMNS, "defence", "wanted", "own"]


def test_chunk_by_chunk_it_is_the_same(known, monkeypatch, tmp_path):
    validation, data, whole = known
    monkeypatch.setattr(images_module, "CHUNK", 40 * data.pixels[0].nbytes)
    chunks, order = compared(validation, data, tmp_path), ["defence", "wanted", "image"]
    first, second = (rows.sort_values(order, ignore_index=True) for rows in (whole, chunks))
    pd.testing.assert_frame_equal(first, second)
    assert len(StoredImages(tmp_path / "Multi-Shield-margins")[:].images) == len(data)


def test_an_image_outside_the_ball_is_no_result(known, monkeypatch, tmp_path):
    def too_far(defence, images, labels, watch, **settings):
        none = torch.zeros(len(images), dtype=torch.long)
        watch(torch.arange(len(images)), AttackedImages(images + 2 * EPS, ["far"] * len(images), none, none), 0)

    monkeypatch.setattr(comparison, "one_margin", too_far)
    with pytest.raises(RuntimeError, match=r"the comparison, the farthest, is 0\.0627\d\d away \(eps is 0\.031373\)"):
        compared(*known[:2], tmp_path)
