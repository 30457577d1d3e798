"""What the paper claims (abstract and key results), and what this run's figures say about it.

The paper gives no figure per classifier. A claim is judged where the run has one of its data sets; elsewhere the
figures stand beside it, and nothing is judged.
"""

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

SETTINGS = ("cifar10", "imagenet")  # data sets that the claims are about


class Shares(NamedTuple):
    """A classifier's figures: metric and scenario to a ratio and the ends of its 95 % interval."""

    of: pd.DataFrame

    def __call__(self, scenario: str, metric: str = "robust_accuracy", column: str = "value") -> float:
        return float(self.of.loc[(scenario, metric), column])

    def text(self, scenario: str, metric: str = "robust_accuracy") -> str:
        """In per cent, with its interval."""
        value, low, high = (100 * self(scenario, metric, column) for column in ("value", "low", "high"))
        return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


class Claim(NamedTuple):
    """A claim; what is measured of it; whether the figures go with it, None where they decide nothing."""

    text: str
    here: Callable[[Shares], str]
    holds: Callable[[Shares], bool | None]


CLAIMS = (
    Claim(
        "a classifier that is not robust goes from 0 % to over 90 % where the attacker is unaware of the shield",
        lambda s: f"{s.text('baseline')} without, {s.text('multishield')} with the shield",
        lambda s: s("multishield", column="high") > 0.9 if s("baseline", column="high") < 0.05 else None,
    ),
    Claim(
        "on average a gain of about 32 points (CIFAR-10) or 65 (ImageNet) over the baseline",
        lambda s: f"{100 * (s('multishield') - s('baseline')):+.1f} points, attacker unaware",
        lambda s: None,
    ),
    Claim(
        "up to 50 % robust accuracy are kept under the adaptive attack (CIFAR-10)",
        lambda s: f"{s.text('paper')} under the paper's attack, {s.text('adaptive')} under all",
        lambda s: s("adaptive", column="high") >= 0.5,
    ),
    Claim(
        "clean accuracy falls only a little",
        lambda s: f"{s.text('baseline', 'clean_accuracy')} without, {s.text('adaptive', 'clean_accuracy')} with it",
        lambda s: None,
    ),
)


def beside(metrics: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Each claim beside each classifier's figures: claim, classifier, here, verdict.

    Args:
        metrics: see `records.metrics`. dataset: `dataset.name` of params.yaml.
    """
    rows = []
    for claim in CLAIMS:
        for name, of in metrics.groupby("classifier", sort=False):
            shares = Shares(of.set_index(["scenario", "metric"])[["value", "low", "high"]])
            holds = claim.holds(shares) if dataset in SETTINGS else None
            verdict = {True: "agrees", False: "differs", None: "not judged"}[holds]
            rows.append({"claim": claim.text, "classifier": name, "here": claim.here(shares), "verdict": verdict})
    return pd.DataFrame(rows)
