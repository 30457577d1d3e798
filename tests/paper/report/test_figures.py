"""Figures keep readable with many classifiers and many classes."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from paper.report import figures


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.mark.parametrize(("count", "grid"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3)), (8, (3, 3))])
def test_panels_stand_at_most_three_in_a_row(count, grid):
    groups = {f"net {i}": i for i in range(count)}
    figure, panels = figures._panels(groups, (4, 3), (0, 1), "epoch", "share")
    axes = [axis for axis, _ in panels]
    layout = axes[0].get_subplotspec().get_gridspec()
    assert (layout.nrows, layout.ncols) == grid
    assert [a for a in figure.axes if a.get_visible()] == axes
    assert {axis.get_title(): group for axis, group in panels} == groups
    assert [a for a in axes if a.get_ylabel()] == [a for a in axes if a.get_subplotspec().is_first_col()]


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


def test_letters_come_from_any_installed_font_or_a_sentence_says_which_are_missing(monkeypatch):
    arc, hiragana = "\N{ARC}", "\N{HIRAGANA LETTER A}"  # matplotlib's DejaVu Sans Mono has the arc alone
    fonts = [font for font in figures.font_manager.fontManager.ttflist if font.name[:4] in ("Deja", "Last")]
    monkeypatch.setattr(figures.font_manager.fontManager, "ttflist", fonts)
    with mpl.rc_context():
        figures.style()
        figure = figures.prompt_similarity(np.eye(2), [arc, hiragana])
        assert figure.axes[0].get_xticklabels()[0].get_fontfamily() == ["DejaVu Sans", "DejaVu Sans Mono"]
        assert "has the hiragana letters of these names; install the Noto fonts" in figure.get_supxlabel()
        figure = figures.prompt_similarity(np.eye(2), ["caf\N{LATIN SMALL LETTER E WITH ACUTE}", "$x$"])
        assert (figure.get_supxlabel(), figure.axes[0].get_title()) == ("", "Similarity of the class prompts")
        assert not mpl.rcParams["text.parse_math"], "a class may be called $x$"


def test_a_curve_holds_until_the_next_rejection_that_is_reached():
    rows = [
        {"classifier": name, "defence": defence, "rejection": x, "robust": y}
        for name in ("standard", "robust")
        for defence, y in (("logit margin", 0.6), ("Multi-Shield", 0.4))
        for x in (0.06, 0.21)
    ]
    figure = figures.rejection_curves(pd.DataFrame(rows))
    assert [axis.get_title() for axis in figure.axes] == ["standard", "robust"]
    for axis in figure.axes:
        lines = {line.get_label(): line for line in axis.lines}
        assert list(lines) == ["logit margin", "Multi-Shield"]
        assert lines["Multi-Shield"].get_xydata().tolist() == [[0.06, 0.4], [0.21, 0.4]]
        assert lines["Multi-Shield"].get_drawstyle() == "steps-post"
