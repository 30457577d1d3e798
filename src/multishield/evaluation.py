"""The evaluation of any model that abstains, in one call: the strongest attacks, the worst case, the sanity rules."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from math import inf
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from multishield import __version__, inputs, records, sanity
from multishield.attacks.threat_model import Ball
from multishield.budget import Budget, radius
from multishield.defences import Drawn
from multishield.errors import UserError, reason_of
from multishield.files import write_text
from multishield.forward import check_repeatable, own_settings
from multishield.images import AttackedImages, Images, StoredImages, folder_of
from multishield.portfolio import Attacker, margins_of, robustness_curve, worst_case
from multishield.resume import Each, results_folder

ATTACKS = ("components", "paper", "joint", "square", "denial")
ASKED_TWICE = 128  # images that are scored twice, see `check_repeatable`


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation; `print` shows it, and in a notebook it is a table.

    `records` has a row per scenario and image, see `multishield.records`, and `runs` those of the sanity rules' runs.
    `attacked` are the images after each attack by its name: `attacked["worst_case"][:]` reads those of the worst case.
    Their pixels are in the range of the given ones, and so is `ball`, the threat model.
    `findings` are the sanity rules (rule, holds, finding), `notes` sentences that a reader must know. For `curve` see
    `robustness_curve`; it is empty without "denial".
    """

    records: pd.DataFrame
    runs: pd.DataFrame
    attacked: dict[str, StoredImages]
    findings: pd.DataFrame
    curve: pd.DataFrame
    notes: tuple[str, ...]
    ball: Ball

    def _share(self, metric: str) -> records.Share:
        metrics = self.metrics.set_index(["scenario", "metric"])
        return records.Share(*metrics.loc[("worst_case", metric), ["value", "low", "high"]])

    clean_accuracy = property(lambda self: self._share("clean_accuracy"), doc="The share of right, accepted images.")
    clean_rejection = property(lambda self: self._share("clean_rejection"), doc="The share of rejected clean images.")
    robust_accuracy = property(lambda self: self._share("robust_accuracy"), doc="The share that no attack has broken.")

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
        shown = ["scenario", "robust accuracy", "correct under attack", "rejected under attack"]
        sections = [
            ("Per cent of all images; the worst case is the number to believe", self.table[shown]),
            (f"Sanity rules: {verdict}", self.findings.drop(columns="classifier")),
            ("Passes per image", self.passes.replace({"scenario": records.TITLES})),
            ("Robustness curve (rejecting within alpha * eps is wrong, too)", self.curve.round(3)),
        ]
        return [(title, frame) for title, frame in sections if len(frame)]

    def _sentences(self) -> list[str]:
        robust = f"Robust accuracy {self.robust_accuracy} of {self.records.image.nunique()} images at {self.ball}"
        clean = f"clean accuracy {self.clean_accuracy}, clean rejection {self.clean_rejection}"
        return [f"{robust}: right or rejected under attack; {clean}.", *(f"Note: {note}." for note in self.notes)]

    def __str__(self) -> str:
        blocks = [fill(sentence, 100) for sentence in self._sentences()]
        for title, frame in self._sections():
            table = records.to_markdown(frame)
            if "rule" in frame:  # its sentences are too long for a table
                lines = (f"- {'' if r.holds else 'VIOLATED: '}{r.rule}: {r.finding}" for r in frame.itertuples())
                table = "".join(fill(line, 100, subsequent_indent="  ") + "\n" for line in lines)
            blocks.append(f"{title}:\n\n{table.rstrip()}")
        return "\n\n".join(blocks)

    def to_html(self) -> str:
        """The same as HTML, without a page around it."""
        notes = "".join(f'<p class="note">{sentence}</p>\n' for sentence in self._sentences())
        return notes + "\n".join(f"<h3>{title}</h3>\n{records.to_html(frame)}" for title, frame in self._sections())

    _repr_html_ = to_html

    def save(self, folder: Path) -> None:
        """Write records.csv, sanity.csv, curve.csv and table.md."""
        for name, frame in (("records", self.records), ("sanity", self.runs), ("curve", self.curve)):
            if len(frame):
                records.save(frame, folder / f"{name}.csv")
        write_text(folder / "table.md", f"{self}\n")


def evaluate(
    model: nn.Module,
    images: Tensor | np.ndarray | Dataset | DataLoader,
    labels: Tensor | np.ndarray | Sequence[int] | None = None,
    eps: float | str = 8 / 255,
    *,
    norm: str = "Linf",
    bounds: Sequence[float] = (0, 1),
    draws: int = 1,
    seed: int = 0,
    attacks: Sequence[str] = ATTACKS,
    candidates: Mapping[str, Tensor | np.ndarray] | None = None,
    budget: Budget | dict | None = None,
    batch_size: int | None = None,
    verbose: bool = True,
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
        images, labels: (N,C,H,W) or (N,D), floating point within `bounds`, or uint8, whose 0 and 255 are the bounds;
            (N,) whole numbers in 0..K-1, K >= 2. Or a Dataset or DataLoader of (image, label), in a fixed order, alone.
        eps, norm: the attacker's radius in the units of the pixels, such as 8 / 255 or "8/255"; "Linf" or "L2".
        draws: of a random model. Gradients are means over so many draws, and as many new ones decide on an image. The
            robust accuracy is one minus the mean share of draws that accept a wrong class. An image then depends on
            the others of its batch, and `paper` and `denial` are not run.
        seed: of every random choice; the result of an image depends on the seed, the image and its id alone.
        attacks: some of `ATTACKS`. The worst case is over all that are run, but for "denial", which wants rejection.
        candidates: attacked images from elsewhere by their source. They count in the worst case as "from" that source.
        budget: steps and targets, by default `Budget()`. device: to compute on, by default the model's own.
        batch_size: images per pass, by default 128, on a GPU up to 1024. verbose: show lines of progress.
        save_to: an empty folder for the results and the attacked images. A killed call with the same arguments
            continues there. Memory then holds one chunk of images.
        name: of the model, in records and progress lines. ids: names of the images (N,), by default 0..N-1.
        known: the same images after attacks on each component alone, in the order of the margins; None where missing.
        resume: a folder for unfinished work that the caller removes; by default one in `save_to`, removed at the end.
        each: how pieces of an attack are computed, see `multishield.resume.Each`.

    Raises UserError if an argument cannot be used; its sentence says which, and what is accepted.
    """
    if not set(attacks) <= set(ATTACKS) or not {"joint", "square"} & set(attacks):
        raise UserError(f"attacks are {list(attacks)}; some of {', '.join(ATTACKS)}, joint or square among them")
    try:
        eps, budget = radius(eps), budget if isinstance(budget, Budget) else Budget(**(budget or {}))
        low, high = torch.tensor(bounds, dtype=torch.float32).tolist()  # rounded as the pixels are
        ball = Ball(eps, {"linf": "Linf", "l2": "L2"}.get(str(norm).lower(), norm), (low, high))
        device = device and torch.empty(0, device=device).device
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"eps, norm, bounds, budget or device cannot be used: {reason_of(error)}") from None
    if not 0 < eps < (high - low if ball.norm == "Linf" else inf) or not -inf < low < high < inf:
        given = f"eps is {eps:g}, norm {ball.norm!r}, bounds ({low:g}, {high:g})"
        raise UserError(f"{given}; Linf with 0 < eps < high - low, such as 8/255, or L2 with eps > 0 are accepted")
    for word, count in (("draws", draws), ("batch_size", 1 if batch_size is None else batch_size)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(f"{word} is {count!r}; give a whole number of at least 1")
    with own_settings(*[model] * isinstance(model, nn.Module)):
        data = inputs.images_of(images, labels, ids, ball.bounds)
        given = inputs.candidates_of(candidates or {}, data, ball)
        model = model.to(device) if device is not None and isinstance(model, nn.Module) else model
        defence, smooth, notes = inputs.usable_defence(model, data)
        attacks = attacks if smooth else ("square",)
        if draws == 1:
            check_repeatable(defence, data[:ASKED_TWICE].pixels, "the model", batch_size)
        else:
            defence, attacks = Drawn(defence, draws, seed), sorted({*attacks} - {"paper", "denial"})
            notes += [f"each pass, and each decision, is {draws} draws of a random model"]
        settings = (sorted(attacks), asdict(budget), vars(ball), seed, name, draws, *vars(data).values())
        settings += (*given, *(images.images for images in given.values()))
        folder = save_to and results_folder(save_to, __version__, *settings, defence, margins_of(defence, data))
        unfinished = resume or (folder and folder / "unfinished")
        attacker = Attacker(name, budget, ball, seed, unfinished, each, batch_size, verbose)
        result = _evaluated(attacker, defence, data, attacks, known, given, tuple(notes), folder)
    if folder:
        result.save(folder)
        if not resume:
            shutil.rmtree(unfinished, ignore_errors=True)
    return result


def _evaluated(attacker: Attacker, defence, data: Images, attacks, known, others, notes, folder) -> Evaluation:
    """Evaluate chunk by chunk, so that memory is bounded; the sanity rules' runs are on the first images of all."""
    held, runs, stored, rows = [], pd.DataFrame(), {}, {scenario: [] for scenario in records.SCENARIOS}
    for chunk in data.chunks():
        some, given = data[chunk], [None if images is None else images[chunk] for images in known]
        begun, attacked = _attacked(attacker, defence, some, attacks, given, {n: c[chunk] for n, c in others.items()})
        if "denial" in attacked:
            held.append(attacker.held_at_each_alpha(defence, some, attacked["worst_case"], attacked["denial"]))
        if "joint" in attacked and chunk.start == 0:
            runs = attacker.sanity_rows(defence, some, list(begun.values()))
        for name, images in attacked.items():
            stored.setdefault(name, StoredImages(folder and folder_of(folder, name))).add(chunk.start, images)
            if name in rows:
                of_images = (defence, some, images, attacker.ball, attacker.batch_size)
                rows[name].append(records.records_of(attacker.name, name, *of_images))
    table = pd.concat(chain(*rows.values()), ignore_index=True)
    curve = robustness_curve(torch.cat(held)) if held else pd.DataFrame()
    return Evaluation(table, runs, stored, sanity.check(table, runs), curve, notes, attacker.ball)


def _attacked(attacker: Attacker, defence: nn.Module, data: Images, attacks: Sequence[str], known, others):
    """Run the attacks in their order. Returns the images of the components' attacks, and of all attacks, by name."""
    begun, attacked = attacker.components(defence, data, known) if "components" in attacks else {}, {}
    if "joint" in attacks:
        attacked["joint"] = attacker.joint(defence, data, list(begun.values()))
    if "paper" in attacks:
        attacked["paper"] = attacker.paper(defence, data)
    worst = worst_case(defence, data, attacked | begun | others, attacker.batch_size)
    if "square" in attacks:
        worst = attacker.square_on_survivors(defence, data, worst)
    attacked["worst_case"] = worst
    if "denial" in attacks:
        attacked["denial"] = attacker.denial(defence, data)
    return begun, begun | attacked
