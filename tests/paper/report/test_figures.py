"""Figures keep readable with many classifiers and many classes."""

import warnings

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


def test_letters_that_the_first_font_lacks_come_from_the_next_ones():
    with mpl.rc_context():
        figures.style()
        with warnings.catch_warnings(action="error"):  # the arc is in DejaVu Sans Mono alone
            figures.prompt_similarity(np.eye(2), ["\N{ARC}", "$x$"]).draw_without_rendering()
        assert not mpl.rcParams["text.parse_math"], "a class may be called $x$"


def curves(of: dict) -> pd.DataFrame:
    """Curves of two points by classifier: the robust accuracy of each defence."""
    rows = [(name, defence, x, y) for name, levels in of.items() for defence, y in levels.items() for x in (0.06, 0.2)]
    return pd.DataFrame(rows, columns=["classifier", "defence", "rejection", "robust"])


def test_the_shield_is_thick_the_threshold_second_and_every_curve_is_named_at_its_end():
    levels = {"logit margin": 0.6, "softmax": 0.6, "Multi-Shield": 0.4, "consistency": 0.41}
    figure = figures.rejection_curves(curves({"a": levels, "b": levels, "weak": {"logit margin": 0.04}}), {"a": 0.3})
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"], "a sentence stands for the third"
    assert "No defence leaves 5 % of the images of the classifier “weak” robust." in figure.about["caption"]
    assert {axis.get_ylim() for axis in figure.axes} == {(0.0, 0.6)}, "the same axes"
    for axis, alone in zip(figure.axes, (["classifier alone"], []), strict=True):
        lines = {line.get_label(): line for line in axis.lines}
        assert list(lines) == [*levels, *alone]
        assert lines["Multi-Shield"].get_xydata().tolist() == [[0.06, 0.4], [0.2, 0.4], [0.2, 0.4]]
        assert lines["Multi-Shield"].get_drawstyle() == "steps-post"
        assert not lines["Multi-Shield"].get_clip_on(), "a curve on the axis is seen whole"
        widths = [line.get_linewidth() for line in lines.values()]
        assert sorted(widths)[-2:] == [lines["logit margin"].get_linewidth(), lines["Multi-Shield"].get_linewidth()]
        places = {text.get_text(): text.get_position()[1] for text in axis.texts}
        assert set(places) == set(lines)
        assert np.diff(sorted(places.values())).min() > 0.02, "no name lies on another"
    assert "a: logit margin 60 % to 60 %; softmax 60 % to 60 %; Multi-Shield 40 % to 40 %;" in figure.about["alt"]


def test_where_no_defence_holds_anything_a_sentence_is_all():
    figure = figures.rejection_curves(curves({"weak": {"logit margin": 0.0, "Multi-Shield": 0.04}}))
    assert not figure.axes
    assert figure.get_suptitle().startswith("No defence leaves 5 %")
    assert figure.get_suptitle() in figure.about["alt"]


def test_equal_curves_of_a_study_lie_side_by_side():
    rows = [
        (of, metric, "1/255") for of in ("classifier", "shield") for metric in ("robust_accuracy", "clean_rejection")
    ]
    table = pd.DataFrame(rows, columns=["of", "metric", "value"]).assign(study="eps", classifier="net")
    axis = figures.studies(table.assign(ratio=0.5, low=0.4, high=0.6)).axes[0]
    places = [tuple(bars[0].get_xydata()[0]) for bars in axis.containers]
    assert len(set(places)) == len(places) == 3
    assert len({(bars[0].get_marker(), bars[0].get_linestyle()) for bars in axis.containers}) == 3, "without colour"
