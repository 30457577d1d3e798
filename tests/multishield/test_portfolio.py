"""The worst case of several attacks, and the robustness curve of the second attacker, against known answers."""

import pytest
import torch

from multishield import AttackedImages, Ball, Budget, ConfidenceThreshold, Images, MultiShield, Unanimity, Undefended
from multishield.portfolio import ALPHAS, Attacker, component_names, robustness_curve, worst_case
from small import Brightness, grey

EPS = 8 / 255


def attacked(images, names, forwards):
    passes = torch.full((len(images),), forwards)
    return AttackedImages(images, names, passes, 2 * passes)


def test_the_worst_case_is_the_first_that_the_defence_itself_accepts():
    # All have the label 0, so that the last clean image is wrong already.
    data = Images(grey(0.4, 0.4, 0.4, 0.6), torch.zeros(4, dtype=torch.long), torch.arange(4))
    first = attacked(grey(0.45, 0.55, 0.4, 0.7), ["claimed", "first", "", "first"], 3)
    second = attacked(grey(0.51, 0.9, 0.4, 0.8), ["second", "second", "", "second"], 4)
    worst = worst_case(Undefended(Brightness()), data, {"first": first, "second": second})
    assert worst.broken_by == ["second", "first", "", "clean"], "a claim alone does not count"
    assert torch.equal(worst.images, grey(0.51, 0.55, 0.4, 0.6))
    assert worst.forwards.tolist() == [7] * 4
    assert worst.backwards.tolist() == [14] * 4


def test_the_curve_counts_images_that_are_neither_wrong_nor_rejected_near_by():
    """The margin is 2 |level - 0.5|, and can fall by 2 eps: within alpha eps an image is rejected exactly where its
    margin is below the threshold plus 2 alpha eps."""
    threshold = 0.05
    level = torch.cat([torch.linspace(0.3, 0.49, 40), torch.linspace(0.51, 0.7, 40)])
    data = Images(grey(*level.tolist()), (level > 0.5).long(), torch.arange(80))
    defence, margin = ConfidenceThreshold(Brightness(), threshold), 2 * (level - 0.5).abs()
    attacker = Attacker("levels", Budget(), Ball(EPS), 0)
    worst, denied = worst_case(defence, data, {}), attacker.denial(defence, data)
    curve = robustness_curve(attacker.held_at_each_alpha(defence, data, worst, denied))
    assert list(curve.alpha) == list(ALPHAS)
    for row in curve.itertuples():
        border = margin - threshold - 2 * row.alpha * EPS
        assert border.abs().min() > 1e-4, "no image lies on the border"
        assert row.value == pytest.approx((border > 0).double().mean().item())
        assert row.low < row.value < row.high
    assert curve.value.is_monotonic_decreasing
    assert 0 < curve.value.iloc[-1] < curve.value.iloc[0] < 1


def test_components_are_called_by_their_names_or_numbers():
    assert component_names(MultiShield(Brightness(), Brightness(0.1), 0.0), 2) == ["on the classifier", "on CLIP"]
    assert component_names(Unanimity([Brightness()] * 2), 2) == ["on component 1", "on component 2"]
