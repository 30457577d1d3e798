"""Stored attacked images, and verdicts on them: the decision rule on what is stored, never an attack's own claim."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from multishield.data.splits import Split
from multishield.evaluation import records
from multishield.models.classifier import device, forward
from multishield.shield import alignment_gap, shield_output
from multishield.storage.files import load_tensors, save_tensors


@dataclass(frozen=True)
class Attacked:
    """Stored attacked images (N,3,H,W) float32, what broke each ("" for none), and the passes each cost."""

    images: Tensor
    attack: list[str]
    forwards: Tensor
    backwards: Tensor

    def save(self, path: Path) -> None:
        names = sorted(set(self.attack))
        codes = torch.tensor([names.index(a) for a in self.attack])
        joined = torch.tensor(list("\n".join(names).encode()), dtype=torch.uint8)
        save_tensors(
            path,
            {
                "images": self.images,
                "attack": codes,
                "attack_names": joined,
                "forwards": self.forwards,
                "backwards": self.backwards,
            },
        )

    @classmethod
    def load(cls, path: Path) -> "Attacked":
        t = load_tensors(path)
        names = bytes(t["attack_names"].tolist()).decode().split("\n")
        return cls(t["images"], [names[i] for i in t["attack"].tolist()], t["forwards"], t["backwards"])


@torch.no_grad()
def decide(model: nn.Module, pixels: Tensor, batch_size: int = 128) -> dict[str, Tensor]:
    """Decide on images: with a shield (a class, or K for reject), or by a classifier alone.

    Returns:
        "decision", "clip" (the class CLIP prefers), both int64 (N,), and "gap" (N,). Without a shield "clip" is -1 and
        "gap" is NaN.
    """
    parts = []
    for x in pixels.split(batch_size):
        if hasattr(model, "scores"):
            logits, cosines = (t.cpu() for t in forward(model.scores, x.to(device())))
            decision = shield_output(logits, cosines, model.tolerance).argmax(1)
            parts.append((decision, cosines.argmax(1), alignment_gap(logits, cosines)))
        else:
            decision = forward(model, x.to(device())).cpu().argmax(1)
            parts.append((decision, torch.full_like(decision, -1), torch.full((len(x),), torch.nan)))
    return {
        name: torch.cat(column)
        for name, column in zip(("decision", "clip", "gap"), zip(*parts, strict=True), strict=True)
    }


def records_of(name: str, scenario: str, model: nn.Module, data: Split, attacked: Attacked, eps: float) -> pd.DataFrame:
    """Records of one scenario, from stored images: verdicts, and the L-inf distance actually used.

    An image that is not broken is the clean one: its attacked decision is then its clean decision.

    Args:
        name: the classifier. scenario: one of `records.SCENARIOS`.
        model: who decides: the classifier alone, or the shield.

    Raises:
        RuntimeError: a stored image leaves the ball or [0,1]; no number is printed for such images.
    """
    linf = (attacked.images - data.pixels).abs().amax(dim=(1, 2, 3))
    if linf.max() > eps + 1e-6 or attacked.images.min() < 0 or attacked.images.max() > 1:
        raise RuntimeError(
            f"an attacked image of {name}/{scenario} is {linf.max():.6f} away (eps is {eps:.6f}) or leaves [0,1]"
        )
    clean, after = decide(model, data.pixels), decide(model, attacked.images)
    return records.rows(
        name,
        scenario,
        data.ids,
        data.labels,
        clean,
        after,
        linf,
        attacked.attack,
        attacked.forwards,
        attacked.backwards,
    )
