"""Costs that are counted, against counts by hand."""

import torch
from torch import nn

from paper.report.overhead import counted, overhead

# 3 x 4 x 4 pixels to 2 classes: 96 weights, 2 biases, a multiply-add per weight.
SMALL = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
# 5 filters of 3 x 3 x 3, on 4 x 4 places: 135 weights and 5 biases; then 80 to 2.
LARGE = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(80, 2))
IMAGE = torch.zeros(1, 3, 4, 4)


def test_counts_by_hand():
    assert counted(SMALL, IMAGE).tolist() == [98, 2 * 96]
    assert counted(LARGE, IMAGE).tolist() == [140 + 162, 2 * (135 * 16 + 160)]


def test_the_shield_costs_both():
    table = overhead({"small": SMALL}, LARGE, IMAGE).set_index("model")
    assert list(table.index) == ["CLIP's image tower", "small", "small with the shield"]
    assert table.loc["small with the shield", "times the classifier's"] == f"{(192 + 4640) / 192:.1f}"
    assert table.loc["small", "times the classifier's"] == ""
    assert table.loc["small with the shield", "million parameters"] == "0.00"
