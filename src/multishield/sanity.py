"""Sanity rules of an evaluation: what must hold if its attacks are as strong as they claim to be.

A violated rule is a result: it is printed with the others, and says not to trust the robust accuracy above it. What
each rule means and what to do is in docs/sanity.md (after Carlini et al. 2019 and Tramer et al. 2020).
"""

import numpy as np
import pandas as pd

from multishield.answers import REPEATABLE
from multishield.records import METRICS, wilson

# Rule -> what must hold.
RULES = {
    "stronger than the paper's": "the joint attack leaves at most as many images robust as the paper's attack",
    "worst case is worst": "the worst case over all attacks leaves at most as many images robust as each attack alone",
    "white box beats black box": "no image is broken by the black-box attack that every white-box attack left standing",
    "larger radius, fewer robust": "robust accuracy under the joint attack does not rise with the radius",
    "large radius, none robust": "at a radius where any image can be made grey, no image is classified correctly",
    "more steps do not hurt": "the joint attack breaks at least as many images as with half its steps",
    "one attack is enough": "the joint attack alone breaks what all attacks together break, but for one image in 200",
    "broken on the classifier too": "no image is broken behind the shield that the baseline's attack left standing",
    "half the radius": "the shield is not far more robust than the better of its models at half the radius",
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
Findings = dict[str, tuple[bool, str]]  # rule -> whether it holds, and the sentence about it


def check(
    records: pd.DataFrame, runs: pd.DataFrame, classes: int, similarity: np.ndarray | None = None
) -> pd.DataFrame:
    """Evaluate every rule for every classifier; of what was not run (no baseline, no prompts) there is no rule.

    Args:
        records: the records of all scenarios. runs: those of `Attacker.sanity_rows`. classes: K.
        similarity: cosines of the classes' text embeddings (K,K).

    Returns:
        A row per classifier and rule: classifier, rule, holds (bool), finding (a sentence with the counts).
    """
    rows = []
    for name, group in records.groupby("classifier", sort=False):
        found = _of_attacks(group, classes) | _of_scores(group, classes)
        if len(runs):
            found |= _of_runs(group, runs[runs.classifier == name], classes)
        if similarity is not None:
            others = similarity[~np.eye(len(similarity), dtype=bool)].max()
            words = f"the two most similar prompts have a cosine of {others:.4f}"
            found["own embeddings"] = (bool(others < ALIKE), words)
        rows += [(name, rule, *found[rule]) for rule in RULES if rule in found]
    return pd.DataFrame(rows, columns=["classifier", "rule", "holds", "finding"])


def _of_attacks(records: pd.DataFrame, classes: int) -> Findings:
    """The rules that compare the attacks with each other."""
    of = {s: _broken(records, s, classes) for s in records.scenario.unique()}
    alone = {s: len(broken) for s, broken in of.items() if s not in ("baseline", "adaptive", "denial")}
    n, together, found = int((records.scenario == "adaptive").sum()), len(of["adaptive"]), {}
    if alone:
        strongest = max(alone, key=alone.get)
        all_broke = f"all together broke {together} of {n}, the strongest alone ({strongest}) {alone[strongest]}"
        found["worst case is worst"] = (together >= alone[strongest], all_broke)
    black_box = int(((records.scenario == "adaptive") & (records.attack == "square")).sum())
    if "joint" in of:
        joint = len(of["joint"])
        left = f"the black-box attack broke {black_box} of {n} images that were left"
        found["white box beats black box"] = (black_box == 0, left)
        share = f"joint broke {joint} of the {together} images that all together broke"
        found["one attack is enough"] = (together - joint <= max(1, n // 200), share)
    if "joint" in of and "paper" in of:
        both = f"joint broke {joint} of {n} images, the paper's attack {len(of['paper'])}"
        found["stronger than the paper's"] = (joint >= len(of["paper"]), both)
    if "baseline" in of:
        beyond, robust = len(of["adaptive"] - of["baseline"]), n - len(of["baseline"] | of["adaptive"])
        found["broken on the classifier too"] = (
            beyond == 0,
            f"{beyond} of {together} images broken behind the shield were left to the classifier; with them its robust "
            f"accuracy is {robust / max(n, 1):.1%}",
        )
    return found


def _of_runs(records: pd.DataFrame, runs: pd.DataFrame, classes: int) -> Findings:
    """The rules about joint at other radii and with fewer steps, on the first images."""
    run = {s: _broken(runs, s, classes) for s in runs.scenario.unique()}
    run["eps x 1"] = _broken(records, "joint", classes) & set(runs.image)
    large = runs[runs.scenario == "large eps"]
    few, standing = len(large), int(METRICS["correct_under_attack"][1](large, classes).sum())
    sizes = [len(run[s]) for s in ("eps x 0.5", "eps x 1", "eps x 2", "large eps")]
    whole, half = len(run["eps x 1"]), len(run["half the steps"])
    at_radii = f"at half, one and two times the radius, and at the large one: {', '.join(map(str, sizes))}"
    found = {
        "larger radius, fewer robust": (sizes == sorted(sizes), f"broken of {few} images {at_radii}"),
        "large radius, none robust": (
            standing == 0,
            f"{standing} of {few} images are classified correctly at the large radius",
        ),
        "more steps do not hurt": (whole >= half, f"broken of {few} images with all steps {whole}, with half {half}"),
    }
    alone = {s.partition(",")[0]: rows for s, rows in runs.groupby("scenario", sort=False) if s.endswith(", eps x 0.5")}
    if alone:
        # Tramer 2022: a detector that is robust at eps implies a classifier that is robust at eps/2, so that one far
        # above all that is known says that the attack on the detector is weak. Far: their intervals do not overlap.
        hold = {name: int(METRICS["correct_under_attack"][1](rows, classes).sum()) for name, rows in alone.items()}
        shield = few - len(_broken(records, "adaptive", classes) & set(runs.image))
        models = ", ".join(f"{name} {count}" for name, count in hold.items())
        words = f"of {few} images the shield holds {shield}; one model at half the radius: {models}"
        found["half the radius"] = (wilson(shield, few)[0] <= wilson(max(hold.values()), few)[1], words)
    return found


def _of_scores(records: pd.DataFrame, classes: int) -> Findings:
    """The rules about the models themselves. A model without CLIP has no gap."""
    gaps = records[records.clean_clip >= 0]
    scores = [records.change, records.distance, gaps.gap_clean, gaps.gap_attacked]
    lost = sum(int((~np.isfinite(s)).sum()) for s in scores)
    change = f"decided again, scores change by at most {100 * records.change.max():.4f} % of the largest"
    found = {
        "same again": (bool(records.change.max() <= REPEATABLE), change),
        "finite": (lost == 0, f"{lost} of {sum(map(len, scores))} gaps, changes and distances are not finite"),
    }
    alone = records[records.scenario == ("baseline" if "baseline" in set(records.scenario) else "adaptive")]
    hits, n = int((alone.clean_decision == alone.label).sum()), len(alone)
    chance = f"{hits} of {n} clean images are right, by chance {n / classes:.0f} would be"
    return found | {"better than chance": (n > 0 and wilson(hits, n)[0] > 1 / classes, chance)}
