"""Examples for the report: one image through the scenarios, with decisions and both models' scores."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from multishield.shards import Shards
from multishield.tensors import load_tensors
from multishield.verdicts import decide
from paper import paths
from paper.data.splits import load_classes, load_split
from paper.params import Params
from paper.stages.baseline import load_shield


@dataclass(frozen=True)
class Example:
    """An image clean and attacked.

    Attributes:
        images: title, with the decision, to pixels (H,W,3) in [0,1].
        scores: the same titles to a frame with columns "classifier" (softmax of z) and "CLIP" (softmax of s c, with
            CLIP's own scale s), K rows.
        label: the true class.
    """

    images: dict[str, np.ndarray]
    scores: dict[str, pd.DataFrame]
    label: int


def pick_examples(rows: pd.DataFrame, count: int, classes: int) -> list[int]:
    """Positions of images that tell the story: accepted when clean, rejected when attacked unaware, broken when the
    attacker knows. Where there are fewer, others follow in order. One per class first, so that they differ."""
    unaware, adaptive = (rows[rows.scenario == s].reset_index(drop=True) for s in ("multishield", "adaptive"))
    story = (unaware.clean_decision == unaware.label).astype(int) + (unaware.attacked_decision == classes)
    story += (adaptive.attacked_decision != adaptive.label) & (adaptive.attacked_decision != classes)
    repeat = unaware.assign(story=story).groupby(["label", "story"]).cumcount()
    ranked = pd.DataFrame({"story": -story, "repeat": repeat}).sort_values(["story", "repeat"], kind="stable")
    return ranked.index[:count].tolist()


def examples(params: Params, name: str, all_records: pd.DataFrame) -> list[Example]:
    """Examples of one classifier: clean, attacked unaware, attacked adaptively."""
    classes, data, shield = load_classes(), load_split("evaluation"), load_shield(name, params.multishield.tolerance)
    scale = float(load_tensors(paths.artifacts("alignment", "text.safetensors"))["scale"])
    attacked = {
        "AutoAttack": Shards(paths.artifacts("baseline", name, "attacked")),
        "adaptive": Shards(paths.artifacts("adaptive", name, "adaptive")),
    }
    picked = pick_examples(all_records[all_records.classifier == name], params.report.examples, len(classes))
    decisions, found = [*(f"accepted: {c}" for c in classes), "rejected"], []
    for i in picked:
        images, scores = {}, {}
        one = slice(i, i + 1)
        pixels = {"clean": data[one].pixels} | {stage: stored[one].images for stage, stored in attacked.items()}
        for stage, shown in pixels.items():
            verdict = decide(shield, shown)
            title = f"{stage}\n{decisions[int(verdict.decision)]}"
            images[title] = shown[0].permute(1, 2, 0).numpy()
            columns = {"classifier": verdict.logits, "CLIP": scale * verdict.cosines}
            scores[title] = pd.DataFrame({model: t[0].softmax(0).numpy() for model, t in columns.items()})
        found.append(Example(images, scores, int(data.labels[i])))
    return found
