"""Sanity rules of an evaluation: what must hold if its attacks are as strong as they claim to be.

A violated rule is a result: it is printed with the others, and says not to trust the robust accuracy above it. What
each rule means and what to do is in docs/sanity.md (after Carlini et al. 2019 and Tramer et al. 2020).
"""

import numpy as np
import pandas as pd

from multishield.evaluation.records import METRICS, wilson
from multishield.models.answers import REPEATABLE

# Rule -> what must hold.
RULES = {
    "stronger than the paper's": "the joint attack leaves at most as many images robust as the paper's attack",
    "worst case is worst": "the worst case over all attacks leaves at most as many images robust as each attack alone",
    "white box beats black box": "no image is broken by the black-box attack that every white-box attack left standing",
    "larger radius, fewer robust": "robust accuracy under the joint attack does not rise with the radius",
    "large radius, none robust": "at radius 0.5, where any image can be made grey, no image is classified correctly",
    "more steps do not hurt": "the joint attack breaks at least as many images as with half its steps",
    "one attack is enough": "the joint attack alone breaks what all attacks together break, but for one image in 200",
    "broken on the classifier too": "no image is broken behind the shield that the baseline's attack left standing",
    "half the radius": "the shield is not far more robust than the classifier at half the radius",
    "same again": "an image decided twice gets the same scores, alone and among others",
    "finite": "all scores are finite",
    "better than chance": "the classifier is better than chance on clean images",
    "own embeddings": "every class has a text embedding of its own",
}


def _broken(records: pd.DataFrame, scenario: str, classes: int) -> set:
    rows = records[records.scenario == scenario]
    return set(rows.image[METRICS["attack_success"][1](rows, classes)])


# A cosine of two prompts above which they are one: float32 keeps seven digits.
ALIKE = 1 - 1e-6


def check(records: pd.DataFrame, runs: pd.DataFrame, classes: int, similarity: np.ndarray) -> pd.DataFrame:
    """Evaluate every rule for every classifier.

    Args:
        records: the records of all scenarios. runs: those of `scenarios.sanity_rows`. classes: K.
        similarity: cosines of the classes' text embeddings (K,K).

    Returns:
        A row per classifier and rule: classifier, rule, holds (bool), finding (a sentence with the counts).
    """
    rows = []
    for name, group in records.groupby("classifier", sort=False):
        outcomes = _outcomes(group, runs[runs.classifier == name], classes, similarity)
        rows += [(name, rule, *outcome) for rule, outcome in zip(RULES, outcomes, strict=True)]
    return pd.DataFrame(rows, columns=["classifier", "rule", "holds", "finding"])


def _outcomes(
    records: pd.DataFrame, runs: pd.DataFrame, classes: int, similarity: np.ndarray
) -> list[tuple[bool, str]]:
    """Whether each of `RULES` holds for one classifier, and the sentence about it."""
    of = {s: _broken(records, s, classes) for s in records.scenario.unique()}
    run = {s: _broken(runs, s, classes) for s in runs.scenario.unique()}
    run["eps x 1"] = of["joint"] & set(runs.image)
    n, few = (records.scenario == "joint").sum(), (runs.scenario == "large eps").sum()
    alone = {s: len(broken) for s, broken in of.items() if s not in ("baseline", "adaptive")}
    beyond = len(of["adaptive"] - of["baseline"])
    strongest = max(alone, key=alone.get)
    black_box = int(((records.scenario == "adaptive") & (records.attack == "square")).sum())
    sizes = [len(run[s]) for s in ("eps x 0.5", "eps x 1", "eps x 2", "large eps")]
    large = runs[runs.scenario == "large eps"]
    standing = int(METRICS["correct_under_attack"][1](large, classes).sum())
    joint, paper, together = (len(of[s]) for s in ("joint", "paper", "adaptive"))
    whole, half = len(run["eps x 1"]), len(run["half the steps"])
    at_radii = f"at half, one and two times the radius, and at 0.5: {', '.join(map(str, sizes))}"
    return [
        (joint >= paper, f"joint broke {joint} of {n} images, the paper's attack {paper}"),
        (
            together >= alone[strongest],
            f"all together broke {together} of {n}, the strongest alone ({strongest}) {alone[strongest]}",
        ),
        (black_box == 0, f"the black-box attack broke {black_box} of {n} images that were left"),
        (sizes == sorted(sizes), f"broken of {few} images {at_radii}"),
        (standing == 0, f"{standing} of {few} images are classified correctly at radius 0.5"),
        (whole >= half, f"broken of {few} images with all steps {whole}, with half {half}"),
        (together - joint <= max(1, n // 200), f"joint broke {joint} of the {together} images that all together broke"),
        (
            beyond == 0,
            f"{beyond} of {together} images broken behind the shield were left to the classifier; with them its robust "
            f"accuracy is {(n - len(of['baseline'] | of['adaptive'])) / max(n, 1):.1%}",
        ),
        _at_half_the_radius(runs, few - len(of["adaptive"] & set(runs.image)), few, classes),
        *_of_scores(records, similarity),
    ]


def _at_half_the_radius(runs: pd.DataFrame, shield: int, few: int, classes: int) -> tuple[bool, str]:
    """Tramer 2022: a detector that is robust at eps implies a classifier that is robust at eps/2, so that one far above
    the other says that the attack on the detector is weak. Far: their intervals do not overlap."""
    rows = runs[runs.scenario == "classifier, eps x 0.5"]
    alone = int(METRICS["correct_under_attack"][1](rows, classes).sum())
    holds = few > 0 and wilson(shield, few)[0] <= wilson(alone, few)[1]
    return holds, f"of {few} images the shield holds {shield}, the classifier at half the radius {alone}"


def _of_scores(records: pd.DataFrame, similarity: np.ndarray) -> list[tuple[bool, str]]:
    """The rules about the models themselves: whether each holds, and the finding."""
    both, alone = (records[(records.scenario == "baseline") == b] for b in (False, True))
    scores = [records.change, records.linf, both.gap_clean, both.gap_attacked]
    lost = sum(int((~np.isfinite(s)).sum()) for s in scores)
    hits, n = int((alone.clean_decision == alone.label).sum()), len(alone)
    others = similarity[~np.eye(len(similarity), dtype=bool)]
    return [
        (
            bool(records.change.max() <= REPEATABLE),
            f"decided again, scores change by at most {100 * records.change.max():.4f} % of the largest",
        ),
        (lost == 0, f"{lost} of {sum(map(len, scores))} gaps, changes and distances are not finite"),
        (
            n > 0 and wilson(hits, n)[0] > 1 / len(similarity),
            f"{hits} of {n} clean images are right, by chance {n / len(similarity):.0f} would be",
        ),
        (bool(others.max() < ALIKE), f"the two most similar prompts have a cosine of {others.max():.4f}"),
    ]
