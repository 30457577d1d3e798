"""Costs against counts by hand, and the choice of the example images."""

from types import SimpleNamespace

import pandas as pd
import torch
from torch import nn

from multishield import Images
from multishield.shield import MultiShield
from paper.report.shields import counted, latency, overhead, pick_examples

# 3 x 4 x 4 pixels to 2 classes: 96 weights, 2 biases, a multiply-add per weight.
SMALL = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
# 5 filters of 3 x 3 x 3, on 4 x 4 places: 135 weights and 5 biases; then 80 to 2.
LARGE = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(80, 2))
IMAGE = torch.zeros(1, 3, 4, 4)


def test_parameters_and_operations_are_counted_and_the_shield_costs_both_models():
    assert counted(SMALL, IMAGE).tolist() == [98, 2 * 96]
    assert counted(LARGE, IMAGE).tolist() == [140 + 162, 2 * (135 * 16 + 160)]
    table = overhead({"small": MultiShield(SMALL, LARGE, 0.001)}, IMAGE).set_index("model")
    assert list(table.index) == ["CLIP's image tower", "small", "small with the shield"]
    assert table["times the classifier's"].tolist() == ["", "", f"{(192 + 4640) / 192:.1f}"]
    assert table.loc["small with the shield", "million parameters"] == "0.00"


def test_the_latency_is_of_both_models_at_both_batches():
    s = SimpleNamespace(
        params=SimpleNamespace(classifiers=["small"]), shield_of=lambda _: MultiShield(SMALL, LARGE, 0.001)
    )
    s.data = Images(torch.rand(64, 3, 4, 4), torch.zeros(64).long(), torch.arange(64))
    table = latency(s)
    assert table.model.tolist() == ["small", "small with the shield"] * 2
    assert table.batch.tolist() == [1, 1, 64, 64]
    assert (table["images per second"] > 0).all()


def test_examples_are_rejected_then_broken_and_of_different_classes():
    # Image 3 is wrong when clean, and image 4 is never broken; 0, 1 and 2 meet all conditions.
    label, clean = [0, 0, 1, 1, 0], [0, 0, 1, 0, 0]
    rows = pd.DataFrame({"label": label * 2, "clean_decision": clean * 2, "classes": 2})
    rows["attacked_decision"] = [2] * 5 + [1, 1, 0, 0, 2]
    rows["scenario"] = ["unaware"] * 5 + ["worst_case"] * 5
    assert pick_examples(rows, 3) == [0, 2, 1]
    assert len(pick_examples(rows, 9)) == 5
