"""Figures keep readable with many classifiers and many classes."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from paper.report import figures, report, sentences, tables


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


def test_fonts_with_more_scripts_follow_where_the_machine_has_them(monkeypatch):
    have = ["DejaVu Sans", "Noto Sans CJK JP", "SimHei"]
    monkeypatch.setattr(figures.font_manager, "get_font_names", lambda: have)
    with mpl.rc_context():
        figures.style()
        assert mpl.rcParams["font.family"] == ["sans-serif", "Noto Sans CJK JP", "SimHei"]
        assert not mpl.rcParams["text.parse_math"], "a class may be called $x$"
    monkeypatch.setattr(figures.font_manager, "get_font_names", lambda: have[:1])
    with mpl.rc_context():
        figures.style()
        assert mpl.rcParams["font.family"] == ["sans-serif"]


def comparison_table():
    rows = [
        {"classifier": name, "wanted": wanted, "own": wanted == 0.2, "defence": defence, "n": 50}
        | {"rejection": wanted + 0.01, "rejection_low": 0.0, "rejection_high": 0.4}
        | {"robust": robust, "robust_low": robust - 0.1, "robust_high": robust + 0.1}
        | {"clean": 0.8, "clean_low": 0.7, "clean_high": 0.9, "correct": 0.4, "correct_low": 0.3, "correct_high": 0.5}
        | {"gained": 1, "lost": 9, "p": float("nan") if defence == "logit margin" else 0.021484}
        for name in ("standard", "robust")
        for wanted in (0.05, 0.2)
        for defence, robust in (("logit margin", 0.6), ("Multi-Shield", 0.4))
    ]
    return pd.DataFrame(rows)


def test_robust_accuracy_is_drawn_against_the_rejection_that_was_reached():
    figure = figures.rejection_curves(comparison_table())
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == ["standard (N = 50)", "robust (N = 50)"]
    for axis in panels:
        lines = {container.get_label(): container.lines[0] for container in axis.containers}
        assert list(lines) == ["logit margin", "Multi-Shield"]
        assert lines["Multi-Shield"].get_xdata().tolist() == pytest.approx([0.06, 0.21])
        assert lines["Multi-Shield"].get_ydata().tolist() == [0.4, 0.4]


def test_the_comparison_as_a_table_and_in_a_sentence():
    table = tables.comparison(comparison_table())
    assert table.p.tolist() == ["", "0.021"] * 4
    assert (
        table["wanted rejection"].tolist() == ["5.0", "5.0", "20.0 (the shield's own)", "20.0 (the shield's own)"] * 2
    )
    assert table["robust accuracy"].tolist()[:2] == ["60.0 [50.0, 70.0]", "40.0 [30.0, 50.0]"]
    said = report.verdict(comparison_table())
    assert said.count("\n") == 1
    assert (
        "- **robust**: at the shield's own clean rejection (21.0%; the threshold's is 21.0%) Multi-Shield leaves 40.0%"
        in said
    )
    assert (
        "logit margin 60.0%. 1 images are held by the shield alone, 9 by the threshold alone (McNemar's p: 0.021"
        in said
    )
    assert said.endswith(
        "leaves there is 60.0%: logit margin (clean accuracy 80.0%, rejection 21.0%; the shield 80.0% and 21.0%)."
    )
    nothing = report.verdict(comparison_table().assign(robust=0.0))
    assert nothing.endswith("The most that any defence leaves there is 0.0%."), "all are as good: none is named"
    assert "no threshold was chosen" in report.verdict(comparison_table()[:0])


def test_every_number_of_a_linked_table_leads_to_its_page():
    frame = pd.DataFrame(
        {"classifier": ["<a>", "b"], "scenario": ["no shield", "worst case"], "robust": ["1.0", "2.0"]}
    )
    page_of = tables.page_of_scenario({"baseline": "04_{}.html", "multishield": "05_{}.html", "adaptive": "06_{}.html"})
    text = tables.linked(frame, page_of, "scenario", "worst case")
    assert "<td>&lt;a&gt;</td>" in text
    assert '<td><a href="04_&lt;a&gt;.html">1.0</a></td>' in text
    assert '<tr class="worst"><td>b</td><td>worst case</td><td><a href="06_b.html">2.0</a></td></tr>' in text


def test_few_headline_metrics_per_classifier():
    names = ("clean_accuracy", "clean_rejection", "robust_accuracy")
    scenarios = ("baseline", "multishield", "paper", "joint", "adaptive")
    rows = [("net", s, m, 0.1 * i, 0, 1, 10) for i, s in enumerate(scenarios) for m in names]
    metrics = pd.DataFrame(rows, columns=["classifier", "scenario", "metric", "value", "low", "high", "n"])
    robust = {"robust_no_shield": 0.0, "robust_unaware": 0.1, "robust_paper": 0.2, "robust_worst_case": 0.4}
    assert tables.headline(metrics) == {"net": {"clean_accuracy": 0.4, "clean_rejection": 0.4} | robust}


def measured(**robust):
    rows = [("net", s, "robust_accuracy", value, value, value, 200) for s, value in robust.items()]
    rows += [("net", s, m, 0.25, 0.2, 0.3, 200) for s in robust for m in ("clean_accuracy", "clean_rejection")]
    return pd.DataFrame(rows, columns=["classifier", "scenario", "metric", "value", "low", "high", "n"])


def test_notebooks_state_what_their_own_records_say():
    said = sentences.baseline("net", measured(baseline=0.5))
    assert said == "Of 200 images **net** classifies 25.0 % correctly, and 50.0 % still under AutoAttack."
    assert "no wrong class through on 90.0 %; it rejects 25.0 %" in sentences.unaware("net", measured(multishield=0.9))
    passes = pd.DataFrame({"attack": ["paper", "joint"], "forwards": [131.4, 5.0]})
    said = sentences.adaptive("net", measured(paper=0.4, joint=0.1, adaptive=0.05), passes)
    assert "holds 40.0 % against the paper's attack (131 forward passes per image), 10.0 % against" in said
    assert said.endswith("(5 forward passes per image), and 5.0 % against all together.")


def test_the_tolerance_curve_is_what_the_gaps_say():
    # Two of four attacked images are wrong, with gaps 0.1 and 0.3; of the clean ones one has a gap of 0.2.
    records = pd.DataFrame({"gap_clean": [0, 0, 0, 0.2], "gap_attacked": [0.1, 0.3, 0.0, 0.0]})
    alone = pd.DataFrame({"label": [0, 0, 1, 1], "attacked_decision": [1, 1, 1, 1]})
    figure = figures.tolerance_curve(records, alone, 0.15)
    (chosen,) = (line for line in figure.axes[0].lines if line.get_label() == "tolerance 0.15")
    assert chosen.get_xydata().tolist() == [[0.25, 0.75]], "one clean image is rejected, one wrong one accepted"
    curve = figure.axes[0].lines[0].get_xydata()
    assert curve[-1].tolist() == [0.0, 0.5], "at the largest gap everything is accepted"


def test_images_that_nothing_broke_are_called_so():
    records = pd.DataFrame({"scenario": ["joint"] * 3, "attack": ["", "clean", "joint"], "forwards": 2, "backwards": 1})
    counted = tables.broken_by(records.assign(image=range(3)))
    assert counted.index.tolist() == [("joint", n) for n in ("not broken", "wrong before any attack", "joint")]


def test_labels_of_the_gaps_are_numbers():
    figures.style()
    records = pd.DataFrame({"classifier": "net", "scenario": ["multishield"] * 3, "gap_clean": [0, 0.1, 0.5]})
    figure = figures.gaps(records.assign(gap_attacked=records.gap_clean), 0.001)
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert {"0", "0.001", "0.1"} <= set(labels)
    assert not [label for label in labels if "$" in label]
