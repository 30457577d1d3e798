"""The evaluation of any model that abstains, in one call: the strongest attacks, the worst case, the sanity rules."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from multishield import inputs, records, sanity
from multishield.attacks.threat_model import Ball
from multishield.budget import Budget, radius
from multishield.errors import UserError, reason_of
from multishield.files import write_text
from multishield.forward import own_settings
from multishield.images import AttackedImages, Images, StoredImages, folder_of
from multishield.portfolio import Attacker, margins_of, robustness_curve, worst_case
from multishield.resume import Each, results_folder

ATTACKS = ("components", "paper", "joint", "square", "denial")


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation; `print` shows it, and in a notebook it is a table.

    `records` has a row per scenario and image, see `multishield.records`, and `runs` those of the sanity rules' runs.
    `attacked` are the images after each attack by its name: `attacked["worst_case"][:]` reads those of the worst case.
    `findings` are the sanity rules (rule, holds, finding), `notes` sentences that a reader must know. For `curve` see
    `robustness_curve`; it is empty without "denial".
    """

    records: pd.DataFrame
    runs: pd.DataFrame
    attacked: dict[str, StoredImages]
    findings: pd.DataFrame
    curve: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def metrics(self) -> pd.DataFrame:
        """A row per scenario and metric, as fractions with 95 % Wilson intervals."""
        return records.metrics(self.records)

    @property
    def passes(self) -> pd.DataFrame:
        """The average cost of an image per scenario: forwards and backwards through the whole defence."""
        groups = self.records.groupby("scenario", sort=False)
        return groups[["forwards", "backwards"]].mean().round(1).reset_index()

    @property
    def table(self) -> pd.DataFrame:
        """A row per scenario: per cent with 95 % Wilson intervals. The worst case is the result."""
        return records.results(self.metrics)

    def _sections(self) -> list[tuple[str, pd.DataFrame]]:
        verdict = "all hold" if self.findings.holds.all() else "VIOLATED: do not believe the robust accuracy"
        sections = [
            ("Per cent of all images; the worst case is the number to believe", self.table),
            (f"Sanity rules: {verdict}", self.findings.drop(columns="classifier")),
            ("Passes per image", self.passes),
            ("Robustness curve (rejecting within alpha * eps is wrong, too)", self.curve.round(3)),
        ]
        return [(title, frame) for title, frame in sections if len(frame)]

    def __str__(self) -> str:
        notes = "".join(f"\nNote: {note}.\n" for note in self.notes)
        return notes + "\n".join(f"\n{title}:\n\n{records.to_markdown(frame)}" for title, frame in self._sections())

    def to_html(self) -> str:
        """The same as HTML, without a page around it."""
        notes = "".join(f'<p class="note">Note: {note}.</p>\n' for note in self.notes)
        return notes + "\n".join(f"<h3>{title}</h3>\n{records.to_html(frame)}" for title, frame in self._sections())

    _repr_html_ = to_html

    def save(self, folder: Path) -> None:
        """Write records.csv, sanity.csv, curve.csv and table.md."""
        for name, frame in (("records", self.records), ("sanity", self.runs), ("curve", self.curve)):
            if len(frame):
                records.save(frame, folder / f"{name}.csv")
        write_text(folder / "table.md", str(self).lstrip())


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float | str = 8 / 255,
    *,
    norm: str = "Linf",
    seed: int = 0,
    attacks: Sequence[str] = ATTACKS,
    budget: Budget | dict | None = None,
    save_to: Path | str | None = None,
    device: torch.device | str | None = None,
    name: str = "model",
    ids: Tensor | Sequence[int] | None = None,
    known: Sequence[AttackedImages | StoredImages | None] = (),
    resume: Path | None = None,
    each: Each = map,
) -> Evaluation:
    """Attack a model that abstains with every attack of this package, and report the worst case.

    Args:
        model: a defence (see `Defence`), which exposes its margins. A network with K+1 outputs, the last of them
            "reject", is given as `RejectClass(network)`, a classifier that never rejects as `Undefended(classifier)`.
        images, labels: (N,3,H,W) float32 in [0,1], or uint8 in 0..255; (N,) in 0..K-1.
        eps, norm: the attacker's radius in units of [0,1] pixels, such as 8 / 255 or "8/255"; "Linf" or "L2".
        seed: of every random choice; the result of an image depends on the seed, the image and its id alone.
        attacks: some of `ATTACKS`. The worst case is over all that are run, but for "denial", which wants rejection.
        budget: steps and targets, by default `Budget()`. device: to compute on, by default the model's own.
        save_to: an empty folder for the results and the attacked images. A killed call with the same arguments
            continues there. Memory then holds one chunk of images.
        name: of the model, in records and progress lines. ids: names of the images (N,), by default 0..N-1.
        known: the same images after attacks on each component of the defence alone, in the order of its margins. A
            component without them (None, or missing) is attacked here.
        resume: a folder for unfinished work that the caller removes; by default one in `save_to`, removed at the end.
        each: how pieces of an attack are computed, see `multishield.resume.Each`.

    Raises UserError if an argument cannot be used; its sentence says which, and what is accepted.
    """
    if not set(attacks) <= set(ATTACKS) or not {"joint", "square"} & set(attacks):
        raise UserError(f"attacks are {list(attacks)}; some of {', '.join(ATTACKS)}, joint or square among them")
    try:
        eps, budget = radius(eps), budget if isinstance(budget, Budget) else Budget(**(budget or {}))
        device = device and torch.empty(0, device=device).device
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"eps, budget or device cannot be used: {reason_of(error)}") from None
    if norm not in ("Linf", "L2") or not 0 < eps < (1 if norm == "Linf" else float("inf")):
        raise UserError(f"norm is {norm!r} and eps {eps:g}; Linf with 0 < eps < 1, such as 8/255, or L2 with eps > 0")
    with own_settings(*[model] * isinstance(model, nn.Module)):
        data = inputs.images_of(images, labels, ids)
        model = model.to(device) if device is not None and isinstance(model, nn.Module) else model
        defence, smooth, notes = inputs.usable_defence(model, data)
        attacks = attacks if smooth else ("square",)
        settings = (sorted(attacks), asdict(budget), eps, norm, seed, name, *vars(data).values())
        folder = results_folder(save_to, *settings, defence, margins_of(defence, data)) if save_to else None
        unfinished = resume or (folder and folder / "unfinished")
        attacker = Attacker(name, budget, Ball(eps, norm), seed, unfinished, each)
        result = _evaluated(attacker, defence, data, attacks, known, tuple(notes), folder)
    if folder:
        result.save(folder)
        if not resume:
            shutil.rmtree(unfinished, ignore_errors=True)
    return result


def _evaluated(attacker: Attacker, defence, data: Images, attacks, known, notes, folder: Path | None) -> Evaluation:
    """Evaluate chunk by chunk, so that memory is bounded; the sanity rules' runs are on the first images of all."""
    held, runs, stored, rows = [], pd.DataFrame(), {}, {scenario: [] for scenario in records.SCENARIOS}
    for chunk in data.chunks():
        some, given = data[chunk], [None if images is None else images[chunk] for images in known]
        begun, attacked = _attacked(attacker, defence, some, attacks, given)
        if "denial" in attacked:
            held.append(attacker.held_at_each_alpha(defence, some, attacked["worst_case"], attacked["denial"]))
        if "joint" in attacked and chunk.start == 0:
            runs = attacker.sanity_rows(defence, some, list(begun.values()))
        for name, images in attacked.items():
            stored.setdefault(name, StoredImages(folder and folder_of(folder, name))).add(chunk.start, images)
            if name in rows:
                rows[name].append(records.records_of(attacker.name, name, defence, some, images, attacker.ball))
    table = pd.concat(chain(*rows.values()), ignore_index=True)
    curve = robustness_curve(torch.cat(held)) if held else pd.DataFrame()
    return Evaluation(table, runs, stored, sanity.check(table, runs), curve, notes)


def _attacked(attacker: Attacker, defence: nn.Module, data: Images, attacks: Sequence[str], known):
    """Run the attacks in their order. Returns the images of the components' attacks, and of all attacks, by name."""
    begun, attacked = attacker.components(defence, data, known) if "components" in attacks else {}, {}
    if "joint" in attacks:
        attacked["joint"] = attacker.joint(defence, data, list(begun.values()))
    if "paper" in attacks:
        attacked["paper"] = attacker.paper(defence, data)
    worst = worst_case(defence, data, attacked | begun)
    if "square" in attacks:
        worst = attacker.square_on_survivors(defence, data, worst)
    attacked["worst_case"] = worst
    if "denial" in attacks:
        attacked["denial"] = attacker.denial(defence, data)
    return begun, begun | attacked
