"""What the paper claims (abstract and key results), and what this run's figures say about it.

The paper gives no figure per classifier. A claim is judged where the run has the data set that it is about; elsewhere
the figures stand beside it, and nothing is judged.
"""

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from multishield.records import cell

BOTH = ("cifar10", "imagenet")


class Claim(NamedTuple):
    """A claim of the paper.

    Attributes:
        text: what is claimed. about: the data sets.
        here: a classifier's metrics, by scenario and metric, to what is measured of it, in per cent.
        holds: the same, and the largest worst case of all classifiers, to whether an interval reaches the claim; None
            where this classifier decides nothing.
    """

    text: str
    about: tuple[str, ...]
    here: Callable[[pd.DataFrame], str]
    holds: Callable[[pd.DataFrame, float], bool | None]


def _of(metrics: pd.DataFrame, scenario: str, metric: str = "robust_accuracy") -> pd.Series:
    return metrics.loc[(scenario, metric)]


def _unaware(metrics: pd.DataFrame, _) -> bool | None:
    return bool(_of(metrics, "multishield").high > 0.9) if _of(metrics, "baseline").value < 0.05 else None


def _at_best(metrics: pd.DataFrame, best: float) -> bool | None:
    """ "Up to": only the classifier with the largest worst case can speak for it or against it."""
    worst = _of(metrics, "adaptive")
    return bool(worst.high >= 0.5) if worst.value == best else None


def _pair(first: str, second: str, words: str, metric: str = "robust_accuracy") -> Callable[[pd.DataFrame], str]:
    return lambda m: words.format(cell(_of(m, first, metric)), cell(_of(m, second, metric)))


def _gain(metrics: pd.DataFrame) -> str:
    return f"{100 * (_of(metrics, 'multishield').value - _of(metrics, 'baseline').value):+.1f} points, attacker unaware"


CLAIMS = (
    Claim(
        "a classifier that is not robust goes from 0 % to over 90 % where the attacker is unaware of the shield",
        BOTH,
        _pair("baseline", "multishield", "{} without, {} with the shield"),
        _unaware,
    ),
    Claim(
        "on average a gain of about 32 points (CIFAR-10) or 65 (ImageNet) over the baseline",
        BOTH,
        _gain,
        lambda m, best: None,
    ),
    Claim(
        "up to 50 % robust accuracy are kept under the adaptive attack on CIFAR-10",
        BOTH[:1],
        _pair("paper", "adaptive", "{} under the paper's attack, {} under all"),
        _at_best,
    ),
    Claim(
        "clean accuracy falls only a little",
        BOTH,
        _pair("baseline", "adaptive", "{} without, {} with the shield", "clean_accuracy"),
        lambda m, best: None,
    ),
)


def beside(metrics: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Each claim beside each classifier's figures: claim, classifier, here, verdict.

    Args:
        metrics: see `records.metrics`. dataset: `dataset.name` of params.yaml.
    """
    groups = metrics.set_index(["scenario", "metric"]).groupby("classifier", sort=False)
    best = max(_of(of, "adaptive").value for _, of in groups)
    rows = []
    for claim in CLAIMS:
        for name, of in groups:
            holds = claim.holds(of, best) if dataset in claim.about else None
            verdict = {True: "agrees", False: "differs", None: "not judged"}[holds]
            rows.append({"claim": claim.text, "classifier": name, "here": claim.here(of), "verdict": verdict})
    return pd.DataFrame(rows)
