"""The evaluation of any model that abstains, in one call: the strongest attack, the worst case, and what speaks for it.

from multishield import evaluate
result = evaluate(model, images, labels, eps=8 / 255)
print(result)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from multishield.attacks.loop.result import AttackedImages
from multishield.attacks.threat_model import Ball
from multishield.data.splits import Split
from multishield.evaluation import inputs, records, sanity
from multishield.evaluation.portfolio import Attacker, margins_of, worst_case
from multishield.evaluation.verdicts import records_of
from multishield.params import Adaptive
from multishield.reporting import tables
from multishield.storage.checkpoints import kept_in
from multishield.storage.errors import UserError
from multishield.storage.files import write_text

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
        attacked: the images after each attack; "adaptive" holds the worst case.
        findings: the sanity rules: rule, holds, finding. curve: see `Attacker.curve`; empty without "denial".
        classes: K. notes: what a reader must know beside the table.
    """

    records: pd.DataFrame
    runs: pd.DataFrame
    attacked: dict[str, AttackedImages]
    findings: pd.DataFrame
    curve: pd.DataFrame
    classes: int
    notes: tuple[str, ...]

    @property
    def table(self) -> pd.DataFrame:
        """A row per scenario: per cent with 95 % Wilson intervals. The worst case is the result."""
        return tables.results(records.metrics(self.records, self.classes))

    @property
    def passes(self) -> pd.DataFrame:
        """What an image has cost on average: forwards and backwards through the whole defence, per attack."""
        rows = [(n, *(float(t.float().mean()) for t in (a.forwards, a.backwards))) for n, a in self.attacked.items()]
        return pd.DataFrame(rows, columns=["attack", "forwards", "backwards"]).round(1)

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

    def save(self, folder: Path | str) -> None:
        """Write records.csv, sanity.csv, curve.csv, table.md and <attack>.safetensors."""
        folder = Path(folder)
        records.save(self.records, folder / "records.csv")
        if len(self.runs):
            records.save(self.runs, folder / "sanity.csv")
        if len(self.curve):
            write_text(folder / "curve.csv", self.curve.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
        write_text(folder / "table.md", str(self).lstrip())
        for name, attacked in self.attacked.items():
            attacked.save(folder / f"{name.replace(' ', '-')}.safetensors")


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
    known: Sequence[AttackedImages | None] = (),
) -> Evaluation:
    """Attack a model that abstains with everything that is known here, and say what is left.

    Args:
        model: pixels (B,3,H,W) in [0,1] to K+1 outputs, the last of them "reject"; or a defence (see `defences`), which
            shows its margins: the attack on it is stronger.
        images, labels: (N,3,H,W) float32 in [0,1]; (N,) in 0..K-1.
        eps, norm: the attacker's radius in units of pixels, "Linf" or "L2".
        seed: of every random choice; an image's result depends on the seed, the image and its id alone.
        attacks: some of `ATTACKS`. The worst case is of all that are run, but for "denial", which wants rejection.
        settings: steps and targets, as in params.yaml's section `adaptive`.
        save_to: a folder for the results; a killed call with the same arguments goes on there.
        device: where to compute; where the model is, unless given.
        name: of the model, in records and progress lines. ids: what the images are called, by default 0..N-1.
        known: what attacks on the parts of the defence alone have made of the same images, in the order of its margins;
            those that are None, or missing, are attacked here.

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
    defence, smooth, notes = inputs.usable_model(model, images, labels)
    if not smooth:
        attacks = ("square",)
    ids = torch.arange(len(images)) if ids is None else ids
    attacker = Attacker(name, settings, Ball(eps, norm), seed)
    with kept_in(save_to and Path(save_to) / "unfinished"):
        result = _evaluated(attacker, defence, Split(images, labels.long(), ids), attacks, known, tuple(notes))
        if save_to:
            result.save(save_to)
    return result


def _evaluated(attacker: Attacker, defence: nn.Module, data: Split, attacks, known, notes) -> Evaluation:
    """The parts first, joint from there, the worst case, the black box on what is left, and the second attacker."""
    chosen, begun, runs, curve = {}, {}, pd.DataFrame(), pd.DataFrame()
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
        curve = attacker.curve(defence, data, worst, attacked["denial"])
    if "joint" in attacks:
        runs = attacker.sanity_rows(defence, data, tuple(begun.values()))
    scenarios = [s for s in records.SCENARIOS if s in attacked]
    rows = [records_of(attacker.name, s, defence, data, attacked[s], attacker.ball) for s in scenarios]
    rows, classes = pd.concat(rows, ignore_index=True), margins_of(defence, data).shape[2]
    return Evaluation(rows, runs, attacked, sanity.check(rows, runs, classes), curve, classes, notes)
