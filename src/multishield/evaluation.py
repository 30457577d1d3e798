"""The evaluation of any model that abstains, in one call: the strongest attack, the worst case, and what speaks for it.

from multishield import evaluate
result = evaluate(model, images, labels, eps=8 / 255)
print(result)
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from multishield import inputs, records, sanity
from multishield.attacks.threat_model import Ball
from multishield.errors import UserError
from multishield.files import write_text
from multishield.images import AttackedImages, Split
from multishield.portfolio import Attacker, curve, margins_of, worst_case
from multishield.resume import kept_in
from multishield.shards import Kept, Shards, cut
from multishield.verdicts import records_of
from paper.params import Adaptive
from paper.report import tables

ATTACKS = ("parts", "paper", "joint", "square", "denial")
# Steps and targets where nobody has chosen others: for strength, not for speed.
DEFAULTS = Adaptive.model_validate(
    {
        "paper": {"steps": 100},
        "joint": {"targets": 5, "steps": 100, "restarts": 1},
        "parts": {"targets": 9, "steps": 100},
        "denial": {"steps": 60},
        "square": {"queries": 1000},
        "sanity": {"images": 50},
    }
)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation has found; `print` shows it, and in a notebook it is a table.

    Attributes:
        records: a row per scenario and image, see `evaluation.records`. runs: those of the sanity rules' runs.
        attacked: the images after each attack, those in a folder read when they are asked for; "adaptive" holds the
            worst case. passes: what an image has cost on average: forwards and backwards through the whole defence.
        findings: the sanity rules: rule, holds, finding. curve: see `portfolio.curve`; empty without "denial".
        classes: K. notes: what a reader must know beside the table.
    """

    records: pd.DataFrame
    runs: pd.DataFrame
    attacked: Mapping[str, AttackedImages]
    passes: pd.DataFrame
    findings: pd.DataFrame
    curve: pd.DataFrame
    classes: int
    notes: tuple[str, ...]

    @property
    def table(self) -> pd.DataFrame:
        """A row per scenario: per cent with 95 % Wilson intervals. The worst case is the result."""
        return tables.results(records.metrics(self.records, self.classes))

    def _parts(self) -> list[tuple[str, pd.DataFrame]]:
        verdict = "all hold" if self.findings.holds.all() else "VIOLATED: do not believe the robust accuracy"
        parts = [
            ("Per cent of all images; the worst case is the number to believe", self.table),
            (f"Sanity rules: {verdict}", self.findings.drop(columns="classifier")),
            ("Passes per image", self.passes),
        ]
        if len(self.curve):
            parts.append(("Robustness curve (rejecting within alpha * eps is wrong, too)", self.curve.round(3)))
        return parts

    def __str__(self) -> str:
        notes = "".join(f"\nNote: {note}.\n" for note in self.notes)
        return notes + "\n".join(f"\n{title}:\n\n{tables.to_markdown(frame)}" for title, frame in self._parts())

    def to_html(self) -> str:
        """The same as HTML, without a page around it."""
        notes = "".join(f'<p class="note">Note: {note}.</p>\n' for note in self.notes)
        return notes + "\n".join(f"<h3>{title}</h3>\n{tables.to_html(frame)}" for title, frame in self._parts())

    _repr_html_ = to_html

    def save(self, folder: Path) -> None:
        """Write records.csv, sanity.csv, curve.csv and table.md."""
        records.save(self.records, folder / "records.csv")
        if len(self.runs):
            records.save(self.runs, folder / "sanity.csv")
        if len(self.curve):
            write_text(folder / "curve.csv", self.curve.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
        write_text(folder / "table.md", str(self).lstrip())


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float = 8 / 255,
    *,
    norm: str = "Linf",
    seed: int = 0,
    attacks: Sequence[str] = ATTACKS,
    settings: Adaptive = DEFAULTS,
    save_to: Path | str | None = None,
    device: torch.device | str | None = None,
    name: str = "model",
    ids: Tensor | None = None,
    known: Sequence[AttackedImages | Shards | None] = (),
) -> Evaluation:
    """Attack a model that abstains with everything that is known here, and say what is left.

    Args:
        model: pixels (B,3,H,W) in [0,1] to K+1 outputs, the last of them "reject"; or a defence (see `defences`), which
            shows its margins: the attack on it is stronger.
        images, labels: (N,3,H,W) float32 in [0,1], or uint8 in 0..255; (N,) in 0..K-1.
        eps, norm: the attacker's radius in units of pixels, "Linf" or "L2".
        seed: of every random choice; an image's result depends on the seed, the image and its id alone.
        attacks: some of `ATTACKS`. The worst case is of all that are run, but for "denial", which wants rejection.
        settings: steps and targets, as in params.yaml's section `adaptive`.
        save_to: a folder for the results, <attack>/<number of a part's first image>.safetensors among them; a killed
            call with the same arguments goes on there. Only a part of the images is in memory then, see `shards`.
        device: where to compute; where the model is, unless given.
        name: of the model, in records and progress lines. ids: what the images are called, by default 0..N-1.
        known: what attacks on the parts of the defence alone have made of the same images, in the order of its margins,
            in memory or as `Shards`; those that are None, or missing, are attacked here.

    Raises:
        UserError: something of this cannot be used; one sentence says what, and what is accepted.
    """
    inputs.usable_images(images, labels)
    unknown = [attack for attack in attacks if attack not in ATTACKS]
    if unknown or not {"joint", "square"} & set(attacks):
        raise UserError(f"attacks are {list(attacks)}; some of {', '.join(ATTACKS)}, joint or square among them")
    if norm not in ("Linf", "L2") or not 0 < eps < (1 if norm == "Linf" else float("inf")):
        raise UserError(f"norm is {norm!r} and eps {eps:g}; Linf with 0 < eps < 1, such as 8/255, or L2 with eps > 0")
    model = model.to(device) if device is not None and isinstance(model, nn.Module) else model
    data = Split(images, labels.long(), torch.arange(len(images)) if ids is None else ids)
    defence, smooth, notes = inputs.usable_model(model, data)
    if not smooth:
        attacks = ("square",)
    folder = Path(save_to) if save_to else None
    attacker = Attacker(name, settings, Ball(eps, norm), seed)
    with kept_in(folder and folder / "unfinished"):
        result = _evaluated(attacker, defence, data, attacks, known, tuple(notes), folder)
        if folder:
            result.save(folder)
    return result


def _evaluated(attacker: Attacker, defence: nn.Module, data: Split, attacks, known, notes, folder) -> Evaluation:
    """Part by part, so that memory is bounded, and what the parts have found together."""
    kept = Kept(folder)
    found = [_of_part(attacker, defence, data, part, attacks, known, kept) for part in cut(data)]
    scenarios = [scenario for scenario in records.SCENARIOS if scenario in found[0].rows]
    rows = pd.concat([part.rows[scenario] for scenario in scenarios for part in found], ignore_index=True)
    runs, classes = found[0].runs, margins_of(defence, data).shape[2]
    sums = sum((part.passes for part in found), Counter())
    passes = [(name, *(sums[name, kind] / len(data) for kind in ("forwards", "backwards"))) for name in kept]
    passes = pd.DataFrame(passes, columns=["attack", "forwards", "backwards"]).round(1)
    along = curve(torch.cat([part.held for part in found])) if "denial" in kept else pd.DataFrame()
    return Evaluation(rows, runs, kept, passes, sanity.check(rows, runs, classes), along, classes, notes)


class _Found(NamedTuple):
    """Of some images: records by scenario, those of the sanity rules' runs, `Attacker.held`, and sums of passes."""

    rows: dict[str, pd.DataFrame]
    runs: pd.DataFrame
    held: Tensor | None
    passes: Counter


def _of_part(attacker: Attacker, defence: nn.Module, data: Split, part: slice, attacks, known, kept: Kept) -> _Found:
    """Attack a part of the images and keep them. The sanity rules' runs are on the first images of all."""
    some, given = data[part], [None if images is None else images[part] for images in known]
    whole = len(some) == len(data)
    at = attacker if whole else attacker.at(f"images {part.start} to {part.stop - 1}", attacker.params, attacker.ball)
    begun, attacked = _attacked(at, defence, some, attacks, given)
    held, runs = None, pd.DataFrame()
    if "denial" in attacked:
        held = at.held(defence, some, attacked["adaptive"], attacked["denial"])
    if "joint" in attacked and part.start == 0:
        runs = attacker.sanity_rows(defence, some, tuple(begun.values()))
    for name, images in attacked.items():
        kept.add(name, part.start, images)
    sums = {(n, kind): int(getattr(of, kind).sum()) for n, of in attacked.items() for kind in ("forwards", "backwards")}
    scenarios = [scenario for scenario in records.SCENARIOS if scenario in attacked]
    rows = {s: records_of(attacker.name, s, defence, some, attacked[s], attacker.ball) for s in scenarios}
    return _Found(rows, runs, held, Counter(sums))


def _attacked(attacker: Attacker, defence: nn.Module, data: Split, attacks, known):
    """The parts first, joint from there, the worst case, the black box on what is left, and the second attacker: what
    the parts' attacks have made, and all, by name."""
    chosen, begun = {}, {}
    if "parts" in attacks:
        begun = attacker.parts(defence, data, known)
    if "joint" in attacks:
        chosen["joint"] = attacker.joint(defence, data, tuple(begun.values()))
    if "paper" in attacks:
        chosen["paper"] = attacker.paper(defence, data)
    worst = worst_case(defence, data, chosen | begun)
    if "square" in attacks:
        worst = attacker.against_survivors(defence, data, worst)
    attacked = begun | chosen | {"adaptive": worst}
    if "denial" in attacks:
        attacked["denial"] = attacker.denial(defence, data)
    return begun, attacked
