"""The paper's claims beside figures that agree with them, and beside others. Published figures: test_model_zoo.py."""

import pandas as pd
import pytest

from paper.report import published


def metrics(name, unaware, worst):
    shares = {"no_shield": 0.0, "unaware": unaware, "paper": 0.6, "worst_case": worst}
    rows = [(name, s, "robust_accuracy", v, v - 0.02, v + 0.02, 200) for s, v in shares.items()]
    rows += [(name, s, "clean_accuracy", v, v, v, 200) for s, v in (("no_shield", 0.9), ("worst_case", 0.8))]
    return pd.DataFrame(rows, columns=["classifier", "scenario", "metric", "value", "low", "high", "n"])


@pytest.mark.parametrize(
    ("unaware", "worst", "dataset", "verdicts"),
    [
        (0.95, 0.5, "cifar10", ["agrees", "not judged", "agrees", "not judged"]),
        (0.80, 0.1, "cifar10", ["differs", "not judged", "differs", "not judged"]),
        (0.95, 0.1, "imagenet", ["agrees", "not judged", "not judged", "not judged"]),
        (0.80, 0.1, "shapes", ["not judged"] * 4),
    ],
)
def test_claims_are_judged_on_the_papers_data_alone(unaware, worst, dataset, verdicts):
    table = published.claims(metrics("net", unaware, worst), dataset)
    assert table.verdict.tolist() == verdicts
    assert table.measured[0].startswith(f"0.0 [-2.0, 2.0] without, {100 * unaware:.1f} [")
    assert table.measured[1] == f"+{100 * unaware:.1f} points, attacker unaware"
    assert table.measured[3] == "90.0 [90.0, 90.0] without, 80.0 [80.0, 80.0] with the shield"


def test_up_to_is_decided_by_the_best_classifier_alone():
    table = published.claims(pd.concat([metrics("weak", 0.95, 0.1), metrics("best", 0.95, 0.49)]), "cifar10")
    assert table.verdict[table.claim.str.startswith("Up to")].tolist() == ["not judged", "agrees"]
