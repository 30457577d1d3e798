"""The quantities of the paper's claims. Published figures: test_model_zoo.py."""

import pandas as pd

from paper.report import published


def metrics(name, alone, unaware, worst):
    shares = {"no_shield": alone, "unaware": unaware, "paper": 0.6, "worst_case": worst}
    rows = [(name, s, "robust_accuracy", v, v, v, 200) for s, v in shares.items()]
    rows += [(name, s, "clean_accuracy", v, v, v, 200) for s, v in (("no_shield", 0.9), ("unaware", 0.8))]
    return pd.DataFrame(rows, columns=["classifier", "scenario", "metric", "value", "low", "high", "n"])


def test_an_improvement_is_over_the_classifier_without_the_shield():
    table = published.improvements(pd.concat([metrics("weak", 0.0, 0.95, 0.1), metrics("robust", 0.5, 0.8, 0.45)]))
    assert table.values.tolist() == [
        ["weak", "0.0 %", "+95.0", "+60.0", "+10.0", "-10.0"],
        ["robust", "50.0 %", "+30.0", "+10.0", "-5.0", "-10.0"],
    ]
