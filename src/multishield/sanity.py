"""Sanity rules: facts that must hold if the attacks of an evaluation are as strong as they claim to be.

docs/evaluate.md explains each rule and its remedy (after Carlini et al. 2019 and Tramer et al. 2020).
"""

import numpy as np
import pandas as pd

from multishield.records import broken, wilson

# Rule -> the fact that must hold.
RULES = {
    "stronger than the paper's": "the joint attack leaves at most as many images robust as the paper's attack",
    "worst case is worst": "(a check) all attacks together leave at most as many images robust as each attack alone",
    "white box beats black box": "no image is broken by the black-box attack that every white-box attack left standing",
    "larger radius, fewer robust": "robust accuracy under the joint attack does not rise with the radius",
    "large radius, none robust": "at a radius where any image can be made grey, no image is classified correctly",
    "more steps do not hurt": "the joint attack breaks at least as many images as with half its steps",
    "one attack is enough": "the joint attack alone breaks what all attacks together break, but for one image in 200",
    "broken on the classifier too": "no image is broken behind the shield that the baseline's attack left standing",
    "half the radius": "the shield is not right on far more images than the better of its models at half the radius",
    "finite": "(a check) all scores are finite",
    "better than chance": "the classifier is better than chance on clean images",
    "own embeddings": "every class has a text embedding of its own",
}
ALIKE = 1 - 1e-6  # two prompts with a larger cosine are one: float32 keeps seven digits
Findings = dict[str, tuple[bool, str]]  # rule -> whether it holds, and the sentence about it


def check(records: pd.DataFrame, runs: pd.DataFrame, similarity: np.ndarray | None = None) -> pd.DataFrame:
    """Evaluate every rule for every classifier; without its runs (no baseline, no prompts) a rule is left out.

    `records` are those of all scenarios, `runs` those of `Attacker.sanity_rows`, `similarity` the cosines of the
    classes' text embeddings (K,K). Returns a row per classifier and rule: classifier, rule, holds, finding.
    """
    rows = []
    for name, group in records.groupby("classifier", sort=False):
        findings = _of_attacks(group) | _of_scores(group)
        if len(runs):
            findings |= _of_runs(group, runs[runs.classifier == name])
        if similarity is not None:
            largest = similarity[~np.eye(len(similarity), dtype=bool)].max()
            words = f"the two most similar prompts have a cosine of {largest:.4f}"
            findings["own embeddings"] = (bool(largest < ALIKE), words)
        rows += [(name, rule, *findings[rule]) for rule in RULES if rule in findings]
    return pd.DataFrame(rows, columns=["classifier", "rule", "holds", "finding"])


def _broken_images(records: pd.DataFrame) -> dict[str, set]:
    """Per scenario the images that are accepted as a wrong class."""
    return {name: set(rows.image[broken(rows)]) for name, rows in records.groupby("scenario", sort=False)}


def _of_attacks(records: pd.DataFrame) -> Findings:
    """The rules that compare the attacks with each other."""
    images, findings = _broken_images(records), {}
    alone = {s: len(i) for s, i in images.items() if s not in ("no_shield", "worst_case", "denial")}
    n, together = int((records.scenario == "worst_case").sum()), len(images["worst_case"])
    if alone:
        strongest = max(alone, key=alone.get)
        words = f"all together broke {together} of {n}, the strongest alone ({strongest}) {alone[strongest]}"
        findings["worst case is worst"] = (together >= alone[strongest], words)
    if "joint" in images:
        black_box = int((records.attack[records.scenario == "worst_case"] == "square").sum())
        joint = len(images["joint"])
        words = f"the black-box attack broke {black_box} of {n} images that were left"
        findings["white box beats black box"] = (black_box == 0, words)
        words = f"joint broke {joint} of the {together} images that all together broke"
        findings["one attack is enough"] = (together - joint <= max(1, n // 200), words)
        if "paper" in images:
            words = f"joint broke {joint} of {n} images, the paper's attack {len(images['paper'])}"
            findings["stronger than the paper's"] = (joint >= len(images["paper"]), words)
    if "no_shield" in images:
        beyond = len(images["worst_case"] - images["no_shield"])
        robust = (n - len(images["no_shield"] | images["worst_case"])) / max(n, 1)
        words = f"{beyond} of {together} images broken behind the shield were left to the classifier; with them its "
        findings["broken on the classifier too"] = (beyond == 0, words + f"robust accuracy is {robust:.1%}")
    return findings


def _of_runs(records: pd.DataFrame, runs: pd.DataFrame) -> Findings:
    """The rules about joint at other radii and with fewer steps, on the first images."""
    images, together, first = _broken_images(runs), _broken_images(records), set(runs.image)
    images["eps x 1"] = together["joint"] & first
    correct = runs[runs.attacked_decision == runs.label].groupby("scenario").size()
    few, standing = len(first), int(correct.get("large eps", 0))
    sizes = [len(images[s]) for s in ("eps x 0.5", "eps x 1", "eps x 2", "large eps")]
    whole, half, broken = len(images["eps x 1"]), len(images["half the steps"]), f"broken of {few} images"
    at_radii = f"{broken} at half, one and two times the radius, and at the large one: {', '.join(map(str, sizes))}"
    large = f"{standing} of {few} images are classified correctly at the large radius"
    findings = {
        "larger radius, fewer robust": (sizes == sorted(sizes), at_radii),
        "large radius, none robust": (standing == 0, large),
        "more steps do not hurt": (whole >= half, f"{broken} with all steps {whole}, with half {half}"),
    }
    alone = [s for s in dict.fromkeys(runs.scenario) if s.endswith(", eps x 0.5")]
    if alone:
        # Tramer 2022: a detector that is robust at eps implies a classifier that is robust at eps/2. A detector far
        # above the best known classifier says that its attack is weak. Far: the intervals do not overlap.
        models = {s.partition(",")[0]: int(correct.get(s, 0)) for s in alone}
        right = records[(records.scenario == "worst_case") & (records.clean_decision == records.label)]
        shield = len((set(right.image) & first) - together["worst_case"])  # a rejected clean image is an error
        counts = ", ".join(f"{name} {count}" for name, count in models.items())
        words = f"of {few} images the shield accepts rightly and holds {shield}; one model at half the radius: {counts}"
        findings["half the radius"] = (wilson(shield, few)[0] <= wilson(max(models.values()), few)[1], words)
    return findings


def _of_scores(records: pd.DataFrame) -> Findings:
    """The rules about the models themselves. A model without CLIP has no gap."""
    gaps = records[records.clean_clip >= 0]
    scores = [records.distance, gaps.gap_clean, gaps.gap_attacked]
    lost = sum(int((~np.isfinite(s)).sum()) for s in scores)
    alone = records[records.scenario == ("no_shield" if "no_shield" in set(records.scenario) else "worst_case")]
    hits, n, chance = int((alone.clean_decision == alone.label).sum()), len(alone), 1 / alone.classes.iloc[0]
    words = f"{hits} of {n} clean images are right, by chance {n * chance:.0f} would be"
    return {
        "finite": (lost == 0, f"{lost} of {sum(map(len, scores))} gaps and distances are not finite"),
        "better than chance": (wilson(hits, n)[0] > chance, words),
    }
