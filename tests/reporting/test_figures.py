"""Figures keep readable with many classifiers and many classes."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from multishield.reporting import figures


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.mark.parametrize(("count", "grid"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3)), (8, (3, 3))])
def test_panels_stand_at_most_three_in_a_row(count, grid):
    figure, panels = figures._panels(count, 4, 3, "share")
    layout = panels[0].get_subplotspec().get_gridspec()
    assert (layout.nrows, layout.ncols) == grid
    assert [a for a in figure.axes if a.get_visible()] == panels
    left = [a for a in panels if a.get_ylabel() == "share"]
    assert left == [a for a in panels if a.get_subplotspec().is_first_col()]


def test_an_example_of_a_thousand_classes_shows_the_true_one_and_the_likeliest():
    scores = pd.DataFrame({"classifier": np.zeros(1000), "CLIP": np.zeros(1000)})
    scores.loc[990, "CLIP"] = scores.loc[20, "classifier"] = 0.5
    names = [f"class {k}" for k in range(1000)]
    figure = figures.example({"clean": np.zeros((8, 8, 3))}, {"clean": scores}, names, label=500)
    labels = figure.axes[1].get_yticklabels()
    shown = [t.get_text() for t in labels]
    assert len(shown) == 12
    assert {"class 20", "class 500", "class 990"} <= set(shown)
    assert shown == sorted(shown, key=names.index)
    assert [t.get_text() for t in labels if t.get_fontweight() == "bold"] == ["class 500"]
    few = figures.example({"clean": np.zeros((8, 8, 3))}, {"clean": scores[:10]}, names[:10], label=3)
    assert [t.get_text() for t in few.axes[1].get_yticklabels()] == names[:10]
