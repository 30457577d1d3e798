"""Per-image records: the results. Every table and figure is a function of these rows alone.

One row per (classifier, scenario, image). Decisions are class indices; K, the number of classes, is "rejected".
Without a shield (baseline) there is no CLIP: its class is -1 and the gap is empty.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from scipy.stats import binomtest

from multishield.files import write_text

# Scenario -> what it is. In the order of the tables.
SCENARIOS = {
    "baseline": "no shield, AutoAttack on the classifier",
    "multishield": "shield, attacker unaware of it",
    "paper": "shield, the paper's adaptive attack",
    "joint": "shield, joint targeted attack",
    "adaptive": "shield, worst case of all attacks",
    "denial": "shield, another attacker: a rejected image is his success",
}
# What tables and figures call them.
TITLES = {
    "baseline": "no shield",
    "multishield": "unaware attacker",
    "paper": "APGD of the paper",
    "joint": "joint",
    "adaptive": "worst case",
    "denial": "denial of service",
}
COLUMNS = (
    *("classifier", "scenario", "image", "label", "clean_decision", "attacked_decision", "clean_clip", "attacked_clip"),
    *("gap_clean", "gap_attacked", "distance", "change", "attack", "forwards", "backwards"),
)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a ratio (Wilson 1927), as fractions.

    Raises:
        ValueError: n is 0, or successes are not in 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a ratio")
    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _won(f: pd.DataFrame, k: int) -> pd.Series:
    """Where the attacker has what he wants: an accepted wrong class, in the scenario "denial" rejection."""
    rejected = f.attacked_decision == k
    return rejected.where(f.scenario == "denial", (f.attacked_decision != f.label) & ~rejected)


# Metric -> (name in tables, rows counted). All are ratios to all N evaluated images (method: a rejected clean image is
# an error; a failed attack stays in the denominator). Robust is what the attacker has not won.
METRICS: dict[str, tuple[str, Callable[[pd.DataFrame, int], pd.Series]]] = {
    "clean_accuracy": ("clean accuracy", lambda f, k: f.clean_decision == f.label),
    "clean_rejection": ("clean rejection", lambda f, k: f.clean_decision == k),
    "robust_accuracy": ("robust accuracy", lambda f, k: ~_won(f, k)),
    "correct_under_attack": ("correct under attack", lambda f, k: f.attacked_decision == f.label),
    "rejection_under_attack": ("rejected under attack", lambda f, k: f.attacked_decision == k),
    "attack_success": ("attack success", _won),
    "clip_accuracy_clean": ("CLIP accuracy, clean", lambda f, k: f.clean_clip == f.label),
    "clip_accuracy_attacked": ("CLIP accuracy, attacked", lambda f, k: f.attacked_clip == f.label),
}


def save(frame: pd.DataFrame, path: Path) -> Path:
    """Write records as CSV, atomically, columns in their fixed order.

    Raises:
        KeyError: a column is missing.
    """
    return write_text(path, frame[list(COLUMNS)].to_csv(index=False, float_format="%.6f", lineterminator="\n"))


def load(*files: Path) -> pd.DataFrame:
    """Read and join records. An empty `attack` (no attack succeeded) stays an empty string."""
    frames = [pd.read_csv(f, dtype={"attack": str, "gap_clean": float, "gap_attacked": float}) for f in files]
    return pd.concat(frames, ignore_index=True).fillna({"attack": ""})


def metrics(records: pd.DataFrame, classes: int) -> pd.DataFrame:
    """One row per (classifier, scenario, metric): value, low, high (95 % Wilson) as fractions, and n."""
    rows = []
    for (classifier, scenario), group in records.groupby(["classifier", "scenario"], sort=False):
        for name, (_, counted) in METRICS.items():
            if name.startswith("clip") and (group.clean_clip < 0).all():
                continue
            hits, n = int(counted(group, classes).sum()), len(group)
            rows.append((classifier, scenario, name, hits / n, *wilson(hits, n), n))
    return pd.DataFrame(rows, columns=["classifier", "scenario", "metric", "value", "low", "high", "n"])


def cell(row: pd.Series, digits: int = 1) -> str:
    """A ratio with its interval in per cent: `85.2 [78.0, 90.3]`."""
    return f"{100 * row.value:.{digits}f} [{100 * row.low:.{digits}f}, {100 * row.high:.{digits}f}]"
