"""Verdicts on stored attacked images: the decision rule on what is stored, never an attack's own claim."""

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from multishield import records
from multishield.answers import ask_twice
from multishield.attacks.threat_model import Ball
from multishield.images import AttackedImages, Split
from multishield.shards import Shards, cut


@dataclass(frozen=True)
class Verdicts:
    """What a model decides on N images, and why; all on the CPU.

    Attributes:
        decision: a class, or K for "reject", int64 (N,).
        clip: the class that CLIP prefers, int64 (N,); -1 without a shield.
        gap: the alignment gap (N,); NaN without a shield.
        logits: z (N,K). cosines: c (N,K), None without a shield.
        change: by how much a score changed when the image was decided again in other company, as a part of the largest
            score of all images (N,).
    """

    decision: Tensor
    clip: Tensor
    gap: Tensor
    logits: Tensor
    cosines: Tensor | None
    change: Tensor


@torch.no_grad()
def decide(model: nn.Module, pixels: Tensor, batch_size: int = 128, names: list | None = None) -> Verdicts:
    """Decide on images (N,3,H,W) in [0,1], with a `MultiShield` or by a classifier alone: each image twice.

    Args:
        names: what the images are called in a message; their numbers unless given.

    Raises:
        UserError: see `ask_twice`.
    """
    scores, change = ask_twice(model, pixels, names=names, batch_size=batch_size)
    decision = model.outputs(tuple(scores)).argmax(1) if hasattr(model, "outputs") else scores[0].argmax(1)
    if hasattr(model, "gap"):  # a shield; it is not imported, so that its code cannot make the baseline stale
        return Verdicts(decision, scores[1].argmax(1), model.gap(*scores), *scores, change)
    none = torch.full((len(pixels),), torch.nan)
    return Verdicts(decision, torch.full_like(decision, -1), none, scores[0], None, change)


def records_of(
    name: str, scenario: str, model: nn.Module, data: Split, attacked: AttackedImages | Shards, ball: Ball
) -> pd.DataFrame:
    """Records of one scenario, from stored images: verdicts, and the distance actually used.

    An image that is not broken is the clean one: its attacked decision is then its clean decision.

    Args:
        name: the classifier. scenario: one of `records.SCENARIOS`.
        model: who decides: the classifier alone, or a defence. ball: what the attack was allowed.

    Raises:
        RuntimeError: see `Ball.measured`. UserError: see `decide`.
    """
    parts = [_records(name, scenario, model, data[part], attacked[part], ball) for part in cut(data)]
    return pd.concat(parts, ignore_index=True)


def _records(name: str, scenario: str, model: nn.Module, data: Split, attacked: AttackedImages, ball: Ball):
    distance = ball.measured(attacked.images, data.pixels, f"{name}/{scenario}")
    ids = data.ids.tolist()
    clean, after = (decide(model, pixels, names=ids) for pixels in (data.pixels, attacked.images))
    columns = {"image": data.ids, "label": data.labels}
    columns |= {"distance": distance, "change": torch.maximum(clean.change, after.change)}
    columns |= {"clean_decision": clean.decision, "clean_clip": clean.clip, "gap_clean": clean.gap}
    columns |= {"attacked_decision": after.decision, "attacked_clip": after.clip, "gap_attacked": after.gap}
    columns |= {"forwards": attacked.forwards, "backwards": attacked.backwards}
    frame = pd.DataFrame({column: t.numpy() for column, t in columns.items()})
    frame = frame.assign(classifier=name, scenario=scenario, attack=attacked.broken_by)
    return frame[list(records.COLUMNS)]
