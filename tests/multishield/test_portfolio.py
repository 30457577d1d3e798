"""The worst case of several attacks, and the curve of the second attacker, against known answers."""

import pytest
import torch
from torch import nn

from multishield.attacks.threat_model import Ball
from multishield.defences import ConfidenceThreshold, Unanimity, Undefended
from multishield.evaluation import DEFAULTS
from multishield.images import AttackedImages, Split
from multishield.portfolio import ALPHAS, Attacker, curve, part_names, worst_case
from multishield.resume import kept_in
from multishield.shield import MultiShield

EPS = 8 / 255


class Brightness(nn.Module):
    """Class 1 where the image is brighter than grey, class 0 elsewhere; the logits say by how much, times `scale`."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        level = self.scale * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([-level, level], 1)


def of_level(*levels):
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()


def attacked(images, names, forwards):
    passes = torch.full((len(images),), forwards)
    return AttackedImages(images, names, passes, 2 * passes)


def test_the_worst_case_is_the_first_that_the_defence_itself_accepts():
    # Clean images of levels 0.4, 0.4, 0.4, 0.6; all have the label 0, so that the last is wrong already.
    data = Split(of_level(0.4, 0.4, 0.4, 0.6), torch.zeros(4, dtype=torch.long), torch.arange(4))
    first = attacked(of_level(0.45, 0.55, 0.4, 0.7), ["claimed", "first", "", "first"], 3)
    second = attacked(of_level(0.51, 0.9, 0.4, 0.8), ["second", "second", "", "second"], 4)
    worst = worst_case(Undefended(Brightness()), data, {"first": first, "second": second})
    assert worst.broken_by == ["second", "first", "", "clean"], "what is only claimed does not count"
    assert torch.equal(worst.images, of_level(0.51, 0.55, 0.4, 0.6))
    assert worst.forwards.tolist() == [7] * 4
    assert worst.backwards.tolist() == [14] * 4


def test_the_curve_counts_what_is_neither_wrong_nor_rejected_near_by():
    """A lead is 2 |level - 0.5|, and can fall by 2 eps: within alpha eps an image is rejected exactly where its lead is
    below the threshold plus 2 alpha eps."""
    threshold = 0.05
    level = torch.cat([torch.linspace(0.3, 0.49, 40), torch.linspace(0.51, 0.7, 40)])
    data = Split(of_level(*level.tolist()), (level > 0.5).long(), torch.arange(80))
    defence, lead = ConfidenceThreshold(Brightness(), threshold), 2 * (level - 0.5).abs()
    with kept_in(None):
        attacker = Attacker("levels", DEFAULTS, Ball(EPS), 0)
        worst = worst_case(defence, data, {})
        along = curve(attacker.held(defence, data, worst, attacker.denial(defence, data)))
    assert list(along.alpha) == list(ALPHAS)
    for row in along.itertuples():
        border = lead - threshold - 2 * row.alpha * EPS
        assert border.abs().min() > 1e-4, "no image lies on the border"
        assert row.value == pytest.approx((border > 0).double().mean().item())
        assert row.low < row.value < row.high
    assert along.value.is_monotonic_decreasing
    assert 0 < along.value.iloc[-1] < along.value.iloc[0] < 1


def test_parts_are_called_by_their_names_or_numbers():
    assert part_names(MultiShield(Brightness(), Brightness(0.1), 0.0), 2) == ["on the classifier", "on CLIP"]
    assert part_names(Unanimity([Brightness(), Brightness(2.0)]), 2) == ["on part 1", "on part 2"]
