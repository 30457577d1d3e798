"""Per-image records, one row per (classifier, scenario, image): every table and figure is a function of these alone.

Decisions are class indices; `classes`, the number K, means "rejected". Without CLIP its class is -1, the gap empty.
A random model decides as most draws do, and columns named by the metrics hold the shares of its draws that count.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from multishield.attacks.threat_model import Ball
from multishield.defences import Drawn
from multishield.files import write_text
from multishield.forward import scores_of
from multishield.images import Images
from multishield.shield import MultiShield, alignment_gap

# Scenario -> its title and what it is, in the order of the tables.
SCENARIOS = {
    "no_shield": ("no shield", "AutoAttack on the classifier alone"),
    "unaware": ("unaware attacker", "the same images, shown to the shield"),
    "paper": ("APGD on the outputs", "the adaptive attack of the paper's public reference"),
    "joint": ("joint", "every component of the defence is driven to the same wrong class"),
    "worst_case": ("worst case", "per image over all attacks: the number to believe"),
    "denial": ("denial of service", "another attacker, whose success is a rejected image"),
}
TITLES = {name: title for name, (title, _) in SCENARIOS.items()}
COLUMNS = (
    *("classifier", "scenario", "image", "label", "classes", "clean_decision", "attacked_decision"),
    *("clean_clip", "attacked_clip", "gap_clean", "gap_attacked", "distance", "attack", "forwards", "backwards"),
)


class Decisions(NamedTuple):
    """The decisions of a model on N images, and their reasons, on the CPU.

    `decision` is a class, or K for "reject", int64 (N,); `classes` is K. `clip` is the class that CLIP prefers, int64
    (N,), and `gap` the alignment gap (N,): -1 and NaN without a shield. `scores` are those of `forward.scores_of`,
    and `shares` the shares of a random model's draws (N,K+1), see `Drawn`; None for any other model.
    """

    decision: Tensor
    classes: int
    clip: Tensor
    gap: Tensor
    scores: tuple[Tensor, ...]
    shares: Tensor | None = None

    def names(self, classes: Sequence[str]) -> list[str]:
        """Each decision in words: the name of the class, or "rejected"."""
        return [[*classes, "rejected"][k] for k in self.decision.tolist()]


@torch.no_grad()
def decide(model: nn.Module, pixels: Tensor, batch_size: int | None = None) -> Decisions:
    """Decisions on images (N,C,H,W) or (N,D) of a classifier or a defence; UserError if a score is not finite."""
    scores = scores_of(model, pixels, batch_size)
    outputs = model.outputs(scores) if hasattr(model, "outputs") else scores[0]
    shares = model.shares(scores) if isinstance(model, Drawn) else None
    decision, classes = (outputs if shares is None else shares).argmax(1), outputs.shape[1] - hasattr(model, "outputs")
    clip, gap = torch.full_like(decision, -1), torch.full((len(pixels),), torch.nan)
    if isinstance(model, MultiShield):
        clip, gap = scores[1].argmax(1), alignment_gap(*scores)
    return Decisions(decision, classes, clip, gap, scores, shares)


def records_of(
    name: str, scenario: str, model: nn.Module, data: Images, attacked, ball: Ball, batch_size: int | None = None
) -> pd.DataFrame:
    """Records of one scenario from `AttackedImages` or `StoredImages`: decisions, and the distance actually used.

    The name is the classifier's; the model is a classifier or a defence. Raises RuntimeError if an image left the ball.
    """
    rows = []
    for chunk in data.chunks():
        some, shown = data[chunk], attacked[chunk]
        distance = ball.checked_distance(shown.images, some.pixels, f"{name}/{scenario}")
        clean, after = decide(model, some.pixels, batch_size), decide(model, shown.images, batch_size)
        decided = (clean.decision, after.decision, clean.clip, after.clip, clean.gap, after.gap, distance)
        columns = (name, scenario, some.ids, some.labels, clean.classes, *decided)
        columns += (shown.broken_by, shown.forwards, shown.backwards)
        columns = (c.numpy() if isinstance(c, Tensor) else c for c in columns)
        shares = _shares(clean.shares, after.shares, some.labels) if isinstance(model, Drawn) else {}
        rows.append(pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)) | shares))
    return pd.concat(rows, ignore_index=True)


def _shares(clean: Tensor, attacked: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    """Per metric and image the share of the draws that count, from the shares of all decisions (N,K+1)."""
    (clean_right, right), rejects = (s.gather(1, labels[:, None])[:, 0] for s in (clean, attacked)), attacked[:, -1]
    shares = {"clean_accuracy": clean_right, "clean_rejection": clean[:, -1], "robust_accuracy": right + rejects}
    shares |= {"correct_under_attack": right, "rejection_under_attack": rejects, "attack_success": 1 - right - rejects}
    return {name: share.clamp(0, 1).numpy() for name, share in shares.items()}


def rejected(rows: pd.DataFrame, when: str) -> pd.Series:
    """Rows whose image is rejected; `when` is "clean" or "attacked"."""
    return rows[f"{when}_decision"] == rows.classes


def broken(rows: pd.DataFrame) -> pd.Series:
    """Rows whose attacked image is accepted as a wrong class."""
    return (rows.attacked_decision != rows.label) & ~rejected(rows, "attacked")


def attacker_wins(rows: pd.DataFrame) -> pd.Series:
    """Rows with the attacker's success: a broken image, in the scenario "denial" a rejected one."""
    return rejected(rows, "attacked").where(rows.scenario == "denial", broken(rows))


# Metric -> (name in tables, rows counted). All are shares of all N evaluated images: a rejected clean image is an
# error, and an image on which the attack failed stays in the denominator.
METRICS: dict[str, tuple[str, Callable[[pd.DataFrame], pd.Series]]] = {
    "clean_accuracy": ("clean accuracy", lambda rows: rows.clean_decision == rows.label),
    "clean_rejection": ("clean rejection", lambda rows: rejected(rows, "clean")),
    "robust_accuracy": ("robust accuracy", lambda rows: ~attacker_wins(rows)),
    "correct_under_attack": ("correct under attack", lambda rows: rows.attacked_decision == rows.label),
    "rejection_under_attack": ("rejected under attack", lambda rows: rejected(rows, "attacked")),
    "attack_success": ("attack success", attacker_wins),
    "clip_accuracy_clean": ("CLIP accuracy, clean", lambda rows: rows.clean_clip == rows.label),
    "clip_accuracy_attacked": ("CLIP accuracy, attacked", lambda rows: rows.attacked_clip == rows.label),
}


class Share(float):
    """A share of all images: a number with the bounds `low` and `high` of its 95 % interval, which `print` shows."""

    def __new__(cls, value: float, low: float = math.nan, high: float = math.nan) -> "Share":
        share = super().__new__(cls, value)
        share.value, share.low, share.high = float(value), low, high
        return share

    def __repr__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a ratio (Wilson 1927), as fractions. Raises ValueError for another ratio.

    Successes may be a sum of shares in [0,1]. They vary less than 0 and 1 do, so the interval is not too narrow.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a ratio")
    p, z = successes / n, 1.959963984540054  # the normal distribution's quantile of 97.5 %
    centre, half = (2 * n * p + z**2) / (2 * (n + z**2)), z / (2 * (n + z**2)) * math.sqrt(4 * n * p * (1 - p) + z**2)
    return (centre - half if successes else 0.0), (centre + half if successes < n else 1.0)


def metrics(records: pd.DataFrame) -> pd.DataFrame:
    """One row per (classifier, scenario, metric): value, low, high (95 % Wilson) as fractions, and n."""
    rows = []
    for (classifier, scenario), group in records.groupby(["classifier", "scenario"], sort=False):
        for name, (_, counted) in METRICS.items():
            if name.startswith("clip") and (group.clean_clip < 0).all():
                continue
            hits, n = float((group[name] if name in group else counted(group)).sum()), len(group)
            rows.append((classifier, scenario, name, hits / n, *wilson(hits, n), n))
    return pd.DataFrame(rows, columns=["classifier", "scenario", "metric", "value", "low", "high", "n"])


def save(frame: pd.DataFrame, path: Path) -> Path:
    """Write records, or another table, as CSV: atomically, and with the same bytes everywhere."""
    return write_text(path, frame.to_csv(index=False, float_format="%.6f", lineterminator="\n"))


def load(*files: Path) -> pd.DataFrame:
    """Read and join records. An empty `attack` (no attack succeeded) stays an empty string."""
    types = {"attack": str, "gap_clean": float, "gap_attacked": float, "value": str}
    return pd.concat([pd.read_csv(f, dtype=types) for f in files], ignore_index=True).fillna({"attack": ""})


def cell(row: pd.Series) -> str:
    """A ratio with its interval in per cent: `85.2 [78.0, 90.3]`."""
    return f"{100 * row.value:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"


def results(metrics: pd.DataFrame) -> pd.DataFrame:
    """The result table: a row per (classifier, scenario), ratios in per cent with 95 % Wilson intervals, and N."""
    table = []
    for (classifier, scenario), group in metrics.groupby(["classifier", "scenario"], sort=False):
        by_name = group.set_index("metric")
        row = {"classifier": classifier, "scenario": TITLES.get(scenario, scenario)}
        row |= {METRICS[name][0]: cell(by_name.loc[name]) for name in METRICS if not name.startswith("clip")}
        table.append(row | {"N": int(group.n.iloc[0])})
    return pd.DataFrame(table)


def broken_by(records: pd.DataFrame) -> pd.DataFrame:
    """The attack that broke the images of each scenario, and the passes that an image cost, on average."""
    names = {"": "not broken", "clean": "wrong before any attack"}
    frame = records.assign(attack=records.attack.replace(names), scenario=records.scenario.map(TITLES))
    groups = frame.groupby(["scenario", "attack"], sort=False)
    return groups.agg(images=("image", "size"), forwards=("forwards", "mean"), backwards=("backwards", "mean")).round(0)


def to_markdown(frame: pd.DataFrame) -> str:
    """A Markdown table, first two columns to the left, numbers to the right."""
    head, *body = ("| " + " | ".join(map(str, row)) + " |\n" for row in (frame.columns, *frame.itertuples(index=False)))
    return head + "|---|---|" + "---:|" * (len(frame.columns) - 2) + "\n" + "".join(body)


def to_html(frame: pd.DataFrame, words: bool = False) -> str:
    """An HTML table; a table of words is set to the left and wraps, one of numbers is set to the right."""
    return frame.to_html(index=False, border=0, classes="words" if words else None)
