"""Decisions and their rows; metrics against hand counts, intervals against published values."""

import pandas as pd
import pytest
import torch

from multishield import AttackedImages, Ball, Images, MultiShield, Undefended, records
from small import Brightness, grey


def frame(scenario, rows, classes):
    """Records from (label, clean decision, attacked decision)."""
    table = pd.DataFrame(rows, columns=["label", "clean_decision", "attacked_decision"])
    others = {"classifier": "net", "scenario": scenario, "attack": "", "classes": classes, "image": range(len(rows))}
    return table.assign(**dict.fromkeys(records.COLUMNS, 0) | {c: table[c] for c in table} | others)


def values(rows):
    return records.metrics(rows).set_index("metric").value.to_dict()


def test_rows_are_the_decisions_on_stored_images():
    data = Images(grey(0.4, 0.4, 0.6), torch.tensor([0, 0, 0]), torch.tensor([7, 8, 9]))
    passes = torch.tensor([1, 2, 3])
    attacked = AttackedImages(grey(0.4, 0.55, 0.6), ["", "joint", "clean"], passes, 2 * passes)
    # The cosines lead by 0.2 |level - 0.51|: CLIP's boundary is a hair above the classifier's.
    shield = MultiShield(Brightness(), Brightness(0.1, 0.51), 0.0)
    rows = records.records_of("net", "joint", shield, data, attacked, Ball(0.2))
    assert tuple(rows.columns) == records.COLUMNS
    assert rows.image.tolist() == [7, 8, 9]
    assert rows.attack.tolist() == ["", "joint", "clean"]
    assert rows.attacked_decision.tolist() == [0, 1, 1]
    assert records.broken(rows).tolist() == [False, True, True]
    assert rows.distance.tolist() == pytest.approx([0, 0.15, 0], abs=1e-6)
    assert (set(rows.classes), rows.clean_clip.tolist()) == ({2}, [0, 0, 1])
    assert rows.forwards.tolist() == [1, 2, 3]
    between = records.decide(shield, grey(0.505))
    assert (between.decision.item(), between.clip.item(), between.names(["dark", "bright"])) == (2, 0, ["rejected"])
    assert between.gap.item() == pytest.approx(0.2 * 0.005, abs=1e-6)
    alone = records.records_of("net", "no_shield", Brightness(), data, attacked, Ball(0.2))
    assert (alone.clean_clip == -1).all()
    assert alone.gap_attacked.isna().all()
    undefended = records.records_of("net", "x", Undefended(Brightness()), data, attacked, Ball(0.2))
    assert set(alone.classes) == set(undefended.classes)
    with pytest.raises(RuntimeError, match=r"image 1 of net/joint, the farthest, is 0\.150000 away"):
        records.records_of("net", "joint", shield, data, attacked, Ball(0.1))


@pytest.mark.parametrize(
    ("hits", "n", "interval"),
    # Newcombe 1998, table I.
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_against_known_values_and_only_for_ratios(hits, n, interval):
    assert records.wilson(hits, n) == pytest.approx(interval, abs=5e-5)
    for other in ((0, 0), (n + 1, n), (-1, n)):
        with pytest.raises(ValueError, match="not a ratio"):
            records.wilson(*other)


ROWS = [(0, 0, 0), (0, 0, 3), (0, 0, 1), (1, 1, 2), (1, 3, 3), (2, 0, 0)]  # of three classes: 3 is "rejected"


@pytest.mark.parametrize(("scenario", "success"), [("joint", 3 / 6), ("denial", 2 / 6)])  # a wrong class; a rejection
def test_metrics_by_hand(scenario, success):
    metrics = values(frame(scenario, ROWS, 3))
    assert metrics["clean_accuracy"] == 4 / 6
    assert metrics["clean_rejection"] == 1 / 6
    assert metrics["correct_under_attack"] == 1 / 6
    assert metrics["rejection_under_attack"] == 2 / 6
    assert metrics["attack_success"] == success
    assert metrics["robust_accuracy"] == pytest.approx(1 - success)
    assert metrics["clip_accuracy_clean"] == 3 / 6


def test_a_shield_that_rejects_everything_is_unmasked_and_class_ten_of_37_is_a_class():
    rows = frame("unaware", [(0, 10, 10)] * 4, 10)
    metrics = values(rows)
    assert (metrics["robust_accuracy"], metrics["clean_accuracy"], metrics["clean_rejection"]) == (1, 0, 1)
    shown = records.results(records.metrics(rows))
    assert {"clean accuracy", "clean rejection", "robust accuracy"} <= set(shown)
    assert shown.scenario.tolist() == ["unaware attacker"]
    # Defect 1 of the public reference: it takes class 10 for "rejected".
    assert values(frame("unaware", [(0, 0, 10)] * 4, 37))["robust_accuracy"] == 0


def test_records_survive_a_round_trip(tmp_path):
    rows = frame("no_shield", [(0, 0, 1)], 3).assign(gap_clean=float("nan"), attack="")
    back = records.load(records.save(rows, tmp_path / "records.csv"))
    assert back.attack.tolist() == [""]
    assert back.gap_clean.isna().all()
    assert back.attacked_decision.tolist() == [1]


def test_tables_show_every_cell():
    rows = frame("joint", [(0, 0, 0), (0, 0, 3)], 3).assign(attack=["", "joint"], forwards=[1, 4])
    table = records.results(records.metrics(rows))
    assert table["clean accuracy"].item() == "100.0 [34.2, 100.0]"
    for text in (records.to_markdown(table), records.to_html(table)):
        assert all(str(cell) in text for cell in table.iloc[0])
    assert records.broken_by(rows).loc[("joint", "not broken")].tolist() == [1, 1, 0]
