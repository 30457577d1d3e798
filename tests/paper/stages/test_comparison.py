"""Defences at equal clean rejection, against answers in closed form."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from multishield import AttackedImages, Ball, Budget, ConfidenceThreshold, Images, MultiShield, StoredImages
from multishield import images as images_module
from multishield.portfolio import Attacker
from paper.params.sections import Comparison
from paper.params.values import FAMILIES
from paper.stages import comparison
from paper.stages.families import Family, signs_of_failure
from small import Brightness, grey

EPS, MOST = 8 / 255, 0.2
PARAMS = {"rejection": MOST, "primary": "Multi-Shield, margins", "cpr": True, "attack": {"targets": 1, "steps": 20}}
PARAMS = Comparison.model_validate(PARAMS)


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


def compared(data, folder):
    stage = object.__new__(comparison.Stage)
    vars(stage).update(params=SimpleNamespace(comparison=PARAMS, seed=0), item="levels", folder=folder, ball=Ball(EPS))
    vars(stage).update(shield=MultiShield(Brightness(), Brightness(0.1), 0.0), data=data, calibration=data)
    stage.earlier = dict.fromkeys(("no_shield", *comparison.EARLIER), beyond_grey(data))
    stage.attacker_of = lambda name: Attacker(name, Budget(), Ball(EPS), 0)
    return stage.compare()


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Evaluation images, whose margin is 2 |level - 0.5|, and the rows."""
    away = torch.linspace(0.0005, 0.0745, 75)
    data = levels(*(0.5 - away).tolist(), *(0.5 + away).tolist())
    return data, compared(data, tmp_path_factory.mktemp("comparison"))


# With these two models each of them is a threshold on the same margin.
@pytest.mark.parametrize("defence", [name for name in FAMILIES if name != "squeezing"])
def test_one_attack_on_the_strictest_threshold_gives_the_whole_curve_exactly(known, defence):
    data, rows = known
    away = (data.pixels.mean((1, 2, 3)) - 0.5).abs().numpy()
    curve = comparison.curves(rows[rows.defence == defence], MOST)
    assert curve.rejection.iloc[-1] == pytest.approx(MOST, abs=0.02)
    for point in curve.itertuples():
        threshold = np.sort(away)[round(point.rejection * len(away))]
        # An attacker moves an image by eps, to the other side of grey; it is accepted there above the threshold.
        sure = np.abs(EPS - away - threshold) > 1e-4
        assert abs(point.robust - (away > EPS - threshold).mean()) <= (~sure).mean() + 1e-9
        assert point.clean == pytest.approx(1 - point.rejection), "all images are right"
    assert 0 < curve.robust.iloc[0] < curve.robust.iloc[-1] < 1


def test_both_attackers_and_each_attack_alone_have_known_answers(known):
    data, rows = known
    away = (data.pixels.mean((1, 2, 3)) - 0.5).abs().numpy()
    of = rows[rows.defence == "logit margin"]  # rejects nothing but ties, as the shield
    assert (of.held[away > EPS + 0.001] == 5).all()
    assert (of.held[away < EPS - 0.001] == 0).all()
    curve = comparison.both_attackers(rows).set_index(["defence", "alpha"]).value
    assert curve["Multi-Shield", 1.0] == pytest.approx((away > EPS).mean(), abs=0.02)
    held = comparison.alone(rows, 0.0).iloc[0]
    assert held["robust, no_shield"] == held["robust, joint"] == pytest.approx((away > EPS).mean(), abs=0.01)
    assert held["robust, random noise"] > 0.98, "noise hardly moves the mean of 48 pixels"


NEEDED = ("Multi-Shield", FAMILIES[0], FAMILIES[-2])  # the shield, the threshold, CLIP


def test_what_may_have_been_missed_by_hand():
    """Ten images: one restart of two breaks three, both break two; others break one more, noise another."""
    lost, n = zip((7, 8, 9), NEEDED, strict=True), np.arange(30)
    rows = [rows_of(np.zeros(10), [1.0] * count + [-np.inf] * (10 - count), name) for count, name in lost]
    rows = pd.concat(rows).assign(forwards=20, captured=[2, 2, 1, 1, 1, *[0] * 25], squared=n == 4)
    rows = rows.assign(steps=40, doubling=n < 2, flat=False, jumps=n == 7)
    rows["t, own"] = [1.0] * 5 + [-np.inf] * 25
    rows["t, random noise"] = [-np.inf] * 6 + [1.0] + [-np.inf] * 23
    params = SimpleNamespace(rejection=MOST, attack=SimpleNamespace(restarts=2))
    row = comparison.completeness(rows, params).to_dict("records")[0]
    left = ("one restart", "restarts", "all", "its models")
    assert [row[f"robust, {name}"] for name in left] == pytest.approx([0.65, 0.5, 0.3, 0.2])
    assert (row["own"], row["others alone"], row["noise"], row["passes"], row["N"]) == (5, 2, 1, 20, 10)
    assert (row["Square alone"], row["violated"]) == (1, "white box beats black box, one attack is enough")
    assert (row["steps"], row["robust, lost to the last doubling"], row["flat"], row["jumps"]) == (40, 0.2, 0, 1)
    assert row["missed"] == 3**2 / (2 * 2)
    assert row["missed, up to"] > row["missed"]


def test_long_runs_double_all_passes_from_the_best_images_until_one_breaks_too_few(known, monkeypatch, tmp_path):
    def by_steps(defence, images, labels, ids, steps, long, watch, starts=(), **settings):
        names = ["joint" if long >= {0: 1, 1: 4, 2: 4, 3: 10, 4: 30}.get(i, 99) else "" for i in ids.tolist()]
        begun.append((steps * long, bool(starts) and bool((starts[0].images == 0.25).all())))
        passes = torch.full((len(images),), steps * (2 if long == 1 else 2 + long))  # as joint with two targets
        watch(torch.arange(len(images)), AttackedImages(images.where(images < 0, 0.25), names, passes, passes), 0)

    monkeypatch.setattr(comparison, "joint", by_steps)
    monkeypatch.setattr(Ball, "checked_distance", lambda *_: None)
    begun = []
    rows = compared(known[0][:8], tmp_path)
    assert begun[:5] == [(20, False)] * 2 + [(80, True), (200, True), (440, True)], "the last one has broken none"
    assert rows[["steps", "doubling", "captured"]].iloc[:2].to_numpy().tolist() == [[440, False, 1], [440, False, 0]]


@pytest.mark.parametrize(("slope", "flat", "jumps"), [(1.0, False, False), (1e-3, False, True), (0.0, True, True)])
def test_a_loss_without_slope_and_one_that_noise_raises_are_signs_of_failure(slope, flat, jumps):
    class Masked(Brightness):
        def forward(self, x):
            scores = super().forward(x)
            return slope * scores + (1 - slope) * scores.detach()

    data = levels(*torch.linspace(0.1, 0.4, 16).tolist())
    family, left = Family(ConfidenceThreshold(Masked(), 0.0)), torch.arange(16)
    signs = signs_of_failure(family, data.pixels, data, left, Ball(0.84), steps=10)
    assert signs["flat"].tolist() == [flat] * 16
    assert jumps * 4 <= signs["jumps"].sum() <= jumps * 12, "half of all random steps lower the loss"
    # One step goes eps/40; ten more steps go eps/4 = 0.21. The border is at a brightness of 0.5.
    assert signs["rising"].tolist() == [not flat and level > 0.29 for level in data.pixels[:, 0, 0, 0].tolist()]


def rows_of(t_clean, t_broken, defence, right=True):
    frame = pd.DataFrame({"t_clean": t_clean, "t_broken": t_broken, "right": right})
    return frame.assign(classifier="net", defence=defence, image=range(len(frame)), refused=False)


def test_two_families_whose_curves_are_known():
    """Ten images. The first family holds all once two are rejected; the second is broken on half of them throughout."""
    first = rows_of(np.arange(10.0), [1.5] * 5 + [-np.inf] * 5, "logit margin")
    second = rows_of(np.arange(10.0), [np.inf] * 5 + [-np.inf] * 5, "Multi-Shield", right=[False] * 2 + [True] * 8)
    points = comparison.curves(pd.concat([first, second]), 0.3).set_index("defence")
    assert points.loc["logit margin"].rejection.tolist() == [0.0, 0.1, 0.2, 0.3]
    assert points.loc["logit margin"].robust.tolist() == [0.5, 0.5, 1.0, 1.0]
    assert points.loc["Multi-Shield"].robust.tolist() == [0.5] * 4
    assert points.loc["Multi-Shield"].clean.tolist() == pytest.approx([0.8, 0.8, 0.8, 0.7])
    t, once = np.array([np.arange(10.0), first.t_broken]), np.ones((1, 10), int)
    means = [comparison.mean_robust(t, once, 0.3, last) for last in (np.inf, 1.0)]
    assert np.concatenate(means) == pytest.approx([2 / 3, 0.5]), "what was not attacked is not called robust"
    ties = np.array([[0.0, 0.0, 0.0, 1.0], [-1.0, 0.5, 0.5, 2.0]])  # no threshold rejects one of the three alone
    # The second resample holds the first image twice, the last one twice.
    means = comparison.mean_robust(ties, np.array([[1, 1, 1, 1], [2, 0, 0, 2]]), 1.0)
    assert means == pytest.approx([(3 * 0.25 + 0.75) / 4, 0.5])


def test_the_table_gives_each_familys_number_and_its_difference(known):
    table = comparison.table(known[1], PARAMS, tolerance=0.0).set_index("defence")
    assert table.index.tolist() == list(FAMILIES)
    assert ((table["mean_low"] <= table["mean"]) & (table["mean"] <= table["mean_high"])).all()
    assert np.isnan(table.p["logit margin"])
    assert table.difference.drop("squeezing").abs().max() < 0.01, "they are the same threshold"
    assert (table.rejection == 0).all(), "models that always agree reject nothing at the shield's own tolerance"
    # The 150 images stand for those of calibration, too: below the seventh smallest score there are six.
    assert table.refused["logit margin"] == table.refused["log-probabilities"] == pytest.approx(6 / 150)
    assert (table.refused_low <= table.refused).all()


def test_a_difference_is_found_and_its_p_is_corrected():
    rng = np.random.default_rng(0)
    t_clean = rng.uniform(0, 1, 200)
    broken = np.where(np.arange(200) < 100, 0.5, -np.inf)
    frames = [rows_of(t_clean, broken, "logit margin"), rows_of(t_clean, broken * 2, "softmax")]
    frames += [rows_of(t_clean, np.where(np.arange(200) < 50, 0.5, -np.inf), PARAMS.primary)]
    frames += [rows_of(t_clean, broken, "Multi-Shield")]
    table = comparison.table(pd.concat(frames), PARAMS, tolerance=-0.1).set_index("defence")
    assert table["mean"][PARAMS.primary] == pytest.approx(0.75)
    assert table.difference[PARAMS.primary] == pytest.approx(0.25)
    assert 0.15 < table.difference_low[PARAMS.primary] < 0.25 < table.difference_high[PARAMS.primary] < 0.35
    assert table.p[PARAMS.primary] == pytest.approx(2 / (comparison.RESAMPLES + 1)), "never 0"
    assert table.p["softmax"] == 1.0
    assert table.rejection.tolist() == pytest.approx([(t_clean < 0.1).mean()] * 4)


def test_holms_correction_by_hand():
    corrected = comparison.holm(pd.Series([0.01, np.nan, 0.04, 0.03, 0.005]))
    assert corrected.dropna().tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_chunk_by_chunk_it_is_the_same(known, monkeypatch, tmp_path):
    data, whole = known
    monkeypatch.setattr(images_module, "CHUNK", 40 * data.pixels[0].nbytes)
    chunks, order = compared(data, tmp_path), ["defence", "image"]
    first, second = (rows.sort_values(order, ignore_index=True) for rows in (whole, chunks))
    pd.testing.assert_frame_equal(first.drop(columns="steps"), second.drop(columns="steps"))  # each chunk decides
    assert len(StoredImages(tmp_path / "Multi-Shield-margins")[:].images) == len(data)


def test_an_image_outside_the_ball_is_no_result(known, monkeypatch, tmp_path):
    def too_far(defence, images, labels, watch, **settings):
        none = torch.zeros(len(images), dtype=torch.long)
        watch(torch.arange(len(images)), AttackedImages(images + 2 * EPS, ["far"] * len(images), none, none), 0)

    monkeypatch.setattr(comparison, "joint", too_far)
    with pytest.raises(RuntimeError, match=r"the comparison, the farthest, is 0\.0627\d\d away \(eps is 0\.031373\)"):
        compared(known[0], tmp_path)
