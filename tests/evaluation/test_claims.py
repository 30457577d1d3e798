"""The paper's claims beside figures that agree with them, and beside others."""

import pandas as pd
import pytest

from multishield.evaluation import claims


def metrics(unaware, worst):
    shares = {"baseline": 0.0, "multishield": unaware, "paper": 0.6, "adaptive": worst}
    rows = [("net", s, "robust_accuracy", v, v - 0.02, v + 0.02, 200) for s, v in shares.items()]
    rows += [("net", s, "clean_accuracy", v, v, v, 200) for s, v in (("baseline", 0.9), ("adaptive", 0.8))]
    return pd.DataFrame(rows, columns=["classifier", "scenario", "metric", "value", "low", "high", "n"])


@pytest.mark.parametrize(
    ("unaware", "worst", "dataset", "verdicts"),
    [
        (0.95, 0.5, "cifar10", ["agrees", "not judged", "agrees", "not judged"]),
        (0.80, 0.1, "cifar10", ["differs", "not judged", "differs", "not judged"]),
        (0.80, 0.1, "shapes", ["not judged"] * 4),
    ],
)
def test_claims_are_judged_where_the_setting_is_the_papers(unaware, worst, dataset, verdicts):
    table = claims.beside(metrics(unaware, worst), dataset)
    assert table.verdict.tolist() == verdicts
    assert table.here[0] == f"0.0 % [-2.0, 2.0] without, {100 * unaware:.1f} % [{100 * unaware - 2:.1f}, " + (
        f"{100 * unaware + 2:.1f}] with the shield"
    )
    assert table.here[1] == f"+{100 * unaware:.1f} points, attacker unaware"
    assert table.here[3] == "90.0 % [90.0, 90.0] without, 80.0 % [80.0, 80.0] with it"
