"""Metrics against hand counts, intervals against published values."""

import pandas as pd
import pytest

from multishield import records
from paper.report import tables


def frame(scenario, rows, classifier="net"):
    """Records from (label, clean decision, attacked decision)."""
    data = dict.fromkeys(records.COLUMNS, 0) | {"classifier": classifier, "scenario": scenario, "attack": ""}
    return pd.DataFrame(
        [
            data | {"label": y, "clean_decision": a, "attacked_decision": b, "image": i}
            for i, (y, a, b) in enumerate(rows)
        ]
    )


def value(metrics, name, scenario="multishield"):
    row = metrics[(metrics.metric == name) & (metrics.scenario == scenario)]
    return row.value.item()


def test_wilson_against_known_values():
    # Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29.
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert records.wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_ratio(hits, n):
    with pytest.raises(ValueError, match="not a ratio"):
        records.wilson(hits, n)


def test_metrics_by_hand():
    k = 3  # decision 3 is "rejected"
    rows = [(0, 0, 0), (0, 0, 3), (1, 1, 2), (1, 3, 3), (2, 0, 0)]
    metrics = records.metrics(frame("multishield", rows), k)
    assert value(metrics, "clean_accuracy") == 3 / 5
    assert value(metrics, "clean_rejection") == 1 / 5
    assert value(metrics, "robust_accuracy") == 3 / 5  # one correct, two rejected
    assert value(metrics, "correct_under_attack") == 1 / 5
    assert value(metrics, "rejection_under_attack") == 2 / 5
    assert value(metrics, "attack_success") == 2 / 5
    assert set(metrics.n) == {5}


def test_the_attacker_who_wants_rejection_has_won_where_it_is():
    rows = [(0, 0, 0), (0, 0, 3), (1, 1, 2), (1, 3, 3), (2, 0, 0)]
    metrics = records.metrics(frame("denial", rows), 3)
    assert value(metrics, "attack_success", "denial") == 2 / 5
    assert value(metrics, "robust_accuracy", "denial") == 3 / 5
    assert value(metrics, "correct_under_attack", "denial") == 1 / 5


def test_a_shield_that_rejects_everything_is_unmasked():
    metrics = records.metrics(frame("multishield", [(0, 10, 10)] * 4), 10)
    assert value(metrics, "robust_accuracy") == 1
    assert value(metrics, "clean_accuracy") == 0
    assert value(metrics, "clean_rejection") == 1
    shown = tables.results(metrics).columns
    assert {"clean accuracy", "clean rejection", "robust accuracy"} <= set(shown)


def test_the_reject_index_is_the_number_of_classes():
    # Defect 1 of the public reference: with 37 classes, class 10 is a class.
    metrics = records.metrics(frame("multishield", [(0, 0, 10)] * 4), 37)
    assert value(metrics, "robust_accuracy") == 0


def test_records_survive_a_round_trip(tmp_path):
    rows = frame("baseline", [(0, 0, 1)])
    rows["gap_clean"] = float("nan")
    rows["attack"] = [""]
    back = records.load(records.save(rows, tmp_path / "records.csv"))
    assert back.attack.tolist() == [""]
    assert back.gap_clean.isna().all()
    assert back.attacked_decision.tolist() == [1]


def test_latex_and_markdown_show_the_same_cells():
    table = tables.results(records.metrics(frame("multishield", [(0, 0, 0), (0, 0, 3)]), 3))
    cells = [str(v) for v in table.iloc[0]]
    assert all(c in tables.to_markdown(table) for c in cells)
    assert all(c in tables.to_latex(table) for c in cells)
