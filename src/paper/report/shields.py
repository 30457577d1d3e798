"""The trained shields: example images with their decisions, and the cost of a decision."""

import timeit
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from multishield.forward import device_of
from multishield.images import StoredImages
from multishield.records import broken, decide, rejected
from multishield.shield import MultiShield
from paper import paths
from paper.stages.attacking import Attacking


def examples(s: Attacking, records: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Images (N,H,W,3) in [0,1] and the shield's decisions: each example clean, and attacked by both attackers."""
    images, titles = [], []
    for name in s.params.classifiers:
        knowing = StoredImages(paths.artifacts("adaptive", name, "worst_case"))
        for i in pick_examples(records[records.classifier == name], s.params.report.examples):
            one = slice(i, i + 1)
            shown = torch.cat([s.data[one].pixels, s.unaware_of(name)[one].images, knowing[one].images])
            decided = decide(s.shield_of(name), shown).names(s.classes)
            for attacker, decision in zip(("clean", "unaware", "knowing"), decided, strict=True):
                titles.append(f"{attacker}\n{decision[:11]}")
            images.append(shown.permute(0, 2, 3, 1).numpy())
    return np.concatenate(images), titles


def pick_examples(records: pd.DataFrame, count: int) -> list[int]:
    """Indices of `count` images of a classifier: accepted when clean, rejected under the unaware attack, then broken.

    If there are too few, images follow that meet fewer of these conditions. Classes take turns, so that they differ.
    """
    unaware, worst = (records[records.scenario == s].reset_index(drop=True) for s in ("unaware", "worst_case"))
    met = (unaware.clean_decision == unaware.label).astype(int) + rejected(unaware, "attacked") + broken(worst)
    ranked = unaware.assign(met=-met, turn=met.groupby([unaware.label, met]).cumcount()).sort_values(["met", "turn"])
    return ranked.index[:count].tolist()


def overhead(shields: dict[str, MultiShield], image: Tensor) -> pd.DataFrame:
    """The cost of a decision on an image (1,3,H,W) in [0,1], in counts that do not depend on the machine.

    A row for CLIP's image tower, each classifier and each shield; a multiply-add counts as two operations. All shields
    have the same CLIP. Its text side runs once, so it is not counted.
    """
    clip = counted(next(iter(shields.values())).alignment, image)
    rows = [("CLIP's image tower", *clip, "")]
    for name, shield in shields.items():
        alone = counted(shield.classifier, image)
        rows += [(name, *alone, ""), (f"{name} with the shield", *(alone + clip), f"{1 + clip[1] / alone[1]:.1f}")]
    columns = ["model", "million parameters", "million operations per image", "times the classifier's"]
    cells = [(model, f"{n / 1e6:.2f}", f"{flops / 1e6:.1f}", times) for model, n, flops, times in rows]
    return pd.DataFrame(cells, columns=columns)


@torch.no_grad()
def latency(s: Attacking) -> pd.DataFrame:
    """The time of a decision on this machine, with and without CLIP: the best of ten passes over 1 and 64 images."""
    rows = []
    for name, count in product(s.params.classifiers, (1, 64)):
        shield, x = s.shield_of(name), s.data[:count].pixels
        for model, title in ((shield.classifier, name), (shield, f"{name} with the shield")):
            call = partial(model, x.to(device_of(model)))
            seconds = min(timeit.repeat(lambda call=call: call().cpu(), number=1, repeat=10))
            rows.append((title, len(x), 1000 * seconds, len(x) / seconds))
    return pd.DataFrame(rows, columns=["model", "batch", "milliseconds", "images per second"]).round(2)


@torch.no_grad()
def counted(model: nn.Module, image: Tensor) -> Tensor:
    """Parameters and operations of one forward pass, int64 (2,). Operations are those of products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        model(image.to(device_of(model)))
    return torch.tensor([sum(p.numel() for p in model.parameters()), counter.get_total_flops()])
