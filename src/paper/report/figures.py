"""Figures of records, histories and images, in one style, each with a caption and a text for those who see none."""

import logging
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.container import BarContainer, Container
from matplotlib.figure import Figure

from multishield.records import TITLES, rejected
from paper.report.tables import BOUNDS, WEAK
from paper.stages.comparison import REFERENCE, SHIELD

GREEN, ORANGE, RED = "#3b7f5c", "#f0cf7a", "#b5403a"
BLUE, AMBER, GREY = "#2a6fb0", "#b85c00", "#6b7280"
WIDTH, LETTERS = 8.8, 9  # of a figure in inches, of which one panel alone takes half; of letters in points
PERCENT, POINTS = "{x:.0%}", {"capsize": 2, "elinewidth": 0.6, "markersize": 4}
SLANTED = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
# Defence -> its curve; all others are grey, and differ in their dashes. The widest lies below.
DARK = "#111827"
LEADING = {SHIELD: {"color": DARK, "linewidth": 3.2}, REFERENCE: {"color": BLUE, "linewidth": 2, "zorder": 3}}
LEADING |= {f"{SHIELD}, margins": {"color": DARK, "linewidth": 1.4, "zorder": 3}}
DASHES = ("--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (2, 2)))
OUTCOMES = {"accepted, correct": {"color": BLUE}, "rejected": {"color": ORANGE, "hatch": "//"}}
OUTCOMES |= {"accepted, wrong": {"color": RED, "hatch": "xx"}}
# Column of a training history -> its curve.
ACCURACIES = {"clean_accuracy": ("clean", GREEN, "o-"), "pgd_accuracy": ("PGD", RED, "s--")}
ACCURACIES |= {"zero_shot_accuracy": ("zero-shot", AMBER, "^-."), "noisy_accuracy": ("under noise", BLUE, "D:")}


def style() -> None:
    """Set the matplotlib style of every figure."""
    warnings.filterwarnings("ignore", "Glyph .* missing")  # it would name this machine's fonts in a notebook
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # this would, too
    plt.style.use(["seaborn-v0_8-whitegrid", "seaborn-v0_8-paper", Path(__file__).with_suffix(".mplstyle")])
    others = {font.name for font in font_manager.fontManager.ttflist if font.name.startswith(("DejaVu", "Noto"))}
    mpl.rcParams["font.family"] = sorted(others, key=lambda name: (name != "DejaVu Sans", name))  # for other scripts


def described(figure: Figure, caption: str, text: str = "") -> Figure:
    """The figure with a caption and an alternative text: by default bars' heights, and both ends of curves."""
    for axis in [] if text else figure.axes:
        text += f" {axis.get_title()}: "
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            bars, line = isinstance(handle, BarContainer), handle[0] if isinstance(handle, Container) else handle
            values = handle.datavalues if bars else np.take(line.get_ydata(), (0, -1))
            text += f"{label} {(', ' if bars else ' to ').join(f'{100 * y:.0f} %' for y in values)}; "
    figure.about = {"caption": caption, "alt": f"{caption.partition('. ')[0].rstrip('.')}. {text.strip(' ;')}"}
    figure._repr_mimebundle_ = lambda **_: ({}, {"image/png": figure.about})  # notebooks keep it
    plt.close(figure)  # or a notebook would show it twice
    return figure


def _with_legend(figure: Figure, caption: str, text: str = "", ncols: int = 3) -> Figure:
    """The figure with one legend for all panels, in which each label stands once; see `described`."""
    entries = (zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes)
    handles = {label: handle for of_axis in entries for handle, label in of_axis}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=ncols, frameon=False)
    return described(figure, caption, text)


def _panels(groups: dict, height: float, ylim: tuple, x: str, y: str, columns: int = 2, **shared) -> tuple:
    """A figure, and the axes and the group of each panel; groups are by title, heights in inches."""
    columns = min(len(groups), columns)
    rows = -(-len(groups) // columns)
    size = (WIDTH if columns > 1 else WIDTH / 2, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True, **shared)
    for unused in axes.flat[len(groups) :]:
        unused.remove()
    plt.setp(axes[:, 0], ylabel=y)
    for axis, title in zip(axes.flat, groups, strict=False):
        axis.set(title=title, xlabel=x, ylim=ylim)
        axis.tick_params(labelbottom=True)  # sharing would leave them to the last row, which may not be full
    axes[0, 0].yaxis.set_major_formatter(PERCENT)
    return figure, list(zip(axes.flat, groups.values(), strict=False))


def scenarios(records: pd.DataFrame) -> Figure:
    """Shares of images by outcome, per classifier and scenario: accepted and correct, rejected, accepted and wrong."""
    groups = {f"{name} (N = {rows.image.nunique()})": rows for name, rows in records.groupby("classifier", sort=False)}
    figure, panels = _panels(groups, 2.8, (0, 1), "", "share of all images")
    for axis, records in panels:
        bars = {"clean, no shield": ("no_shield", "clean"), "clean, shield": ("unaware", "clean")}
        # Denial is left out: a rejected image is its attacker's success.
        bars |= {TITLES[s]: (s, "attacked") for s in records.scenario.unique() if s != "denial"}
        shown = [(records[records.scenario == scenario], when) for scenario, when in bars.values()]
        correct = np.array([(rows[f"{when}_decision"] == rows.label).mean() for rows, when in shown])
        refused = np.array([rejected(rows, when).mean() for rows, when in shown])
        shares, below = (correct, refused, 1 - correct - refused), np.zeros(len(bars))
        for (outcome, look), heights in zip(OUTCOMES.items(), shares, strict=True):
            axis.bar(range(len(bars)), heights, 0.72, below, label=outcome, edgecolor="white", **look)
            below = below + heights
        axis.set_xticks(range(len(bars)), list(bars), **SLANTED)
        axis.grid(axis="x", visible=False)
    return _with_legend(figure, f"What becomes of the images. Bars from the left: {'; '.join(bars)}.")


def _defences(table: pd.DataFrame, x: str, y: str, titles: tuple, caption: str, alone: dict, **look) -> Figure:
    """A panel per classifier, with a curve per defence; where all stay below `WEAK`, a sentence in the caption."""
    groups = dict(list(table.groupby("classifier", sort=False)))
    weak = [name for name, rows in groups.items() if rows[y].max() < WEAK]
    words = [f"No defence leaves {100 * WEAK:.0f} % of the images of the classifier “{name}” robust." for name in weak]
    groups = {name: rows for name, rows in groups.items() if name not in weak}
    if not groups:
        figure = plt.figure(figsize=(WIDTH, 0.3 * len(words)))
        figure.suptitle("\n".join(words))
        return described(figure, caption, " ".join(words))
    top = np.ceil(10 * max(*table[y], *alone.values())) / 10
    figure, panels = _panels(groups, 3.4, (0, top), *titles, sharex=True)
    for (axis, rows), name in zip(panels, groups, strict=True):
        dashes = iter(DASHES * len(rows))
        for defence, curve in rows.groupby("defence", sort=False):
            line = LEADING.get(defence) or {"color": GREY, "linewidth": 1.1, "linestyle": next(dashes)}
            ends = [*curve[x], table[x].max()], [*curve[y], curve[y].iloc[-1]]
            axis.plot(*ends, label=defence, clip_on=False, **line, **look)
        if name in alone:
            axis.plot([0, table[x].max()], [alone[name]] * 2, "--", color=AMBER, zorder=4, label="classifier alone")
        axis.margins(x=0)
        axis.xaxis.set_major_formatter(PERCENT)
        _end_labels(axis)
    return described(figure, " ".join([caption, "The threshold without CLIP is “logit margin”.", *words]))


def _end_labels(axis) -> None:
    """Write the name of each curve at its end, as far from the next name as letters are high."""
    lines = sorted(axis.lines, key=lambda line: (line.get_ydata()[-1], line.get_linewidth()))
    (low, high), ends = axis.get_ylim(), np.array([line.get_ydata()[-1] for line in lines])
    step = 1.35 * LETTERS / 72 * (high - low) / (0.8 * axis.figure.get_figheight() / axis.get_gridspec().nrows)
    steps = step * np.arange(len(lines))
    places = np.maximum.accumulate(ends - steps) + steps  # upwards from the lowest
    places = np.minimum.accumulate((np.minimum(places, high) - steps)[::-1])[::-1] + steps  # and down from the top
    for line, end, place in zip(lines, ends, places, strict=True):
        name, arrow = line.get_label(), {"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.5}
        look = {"color": line.get_color(), "va": "center", "weight": "bold" if name in LEADING else "normal"}
        look |= {"xycoords": ("axes fraction", "data"), "annotation_clip": False}
        axis.annotate(name, (1, end), (1.07, place), arrowprops=arrow | {"relpos": (0, 0.5), "shrinkB": 0}, **look)


def rejection_curves(table: pd.DataFrame, alone: dict[str, float] | None = None) -> Figure:
    """The curves of `stages.comparison.curves`; `alone` has the robust accuracy without a defence by classifier."""
    titles = "clean images rejected", "robust accuracy, knowing attacker"
    caption = "Robust accuracy at each share of clean images that a defence rejects. A higher curve is better."
    return _defences(table, "rejection", "robust", titles, caption, alone or {}, drawstyle="steps-post")


def studies(table: pd.DataFrame) -> Figure:
    """Robust accuracy and clean rejection by classifier and study, with 95 % intervals (`stages.studies.table`)."""
    by_name = table.groupby("classifier", sort=False)
    groups = {f"{name}: {study}": rows for name, of in by_name for study, rows in of.groupby("study", sort=False)}
    figure, panels = _panels(groups, 2.5, (-0.02, 1.02), "", "", columns=table.study.nunique())
    looks = zip(table.of.unique(), ((RED, "o-"), (GREEN, "s--"), (BLUE, "^-."), ("#7d5ba6", "v:")), strict=False)
    series = [(f"robust, {of}", of, "robust_accuracy", *look) for of, look in looks]
    series.append(("rejected clean images, shield", "shield", "clean_rejection", AMBER, "D:"))
    for axis, rows in panels:
        for number, (label, of, metric, colour, line) in enumerate(series):
            curve = rows[(rows.of == of) & (rows.metric == metric)]
            if len(curve):
                look = POINTS | {"color": colour, "fmt": line, "label": label}
                error = (curve.ratio - curve.low).abs(), (curve.high - curve.ratio).abs()  # rounding may be below 0
                places = np.arange(len(curve)) + 0.1 * (number - 2)  # side by side, so that equal curves are seen
                axis.errorbar(places, curve.ratio, error, clip_on=False, **look)
        values = rows.value.unique()
        axis.set_xticks(range(len(values)), values, **SLANTED if rows.study.iloc[0] == "prompts" else {})
    return _with_legend(figure, "Robust accuracy and clean rejection where one setting is varied, with 95 % intervals.")


def bounds(table: pd.DataFrame) -> Figure:
    """The bracket of smoothed models by L2 radius (`stages.studies.bounds`): the true share lies in the band."""
    groups = dict(list(table.groupby("classifier", sort=False)))
    figure, panels = _panels(groups, 2.9, (0, 1), "L2 radius in units of [0,1] pixels", "share of images")
    for axis, rows in panels:
        looks = (BLUE, "o"), (AMBER, "s"), (GREEN, "^"), (RED, "D")
        for (sigma, of), (colour, mark) in zip(rows.groupby("value", sort=False), looks, strict=False):
            curves = {bound: curve.set_index("radius").ratio for bound, curve in of.groupby("bound")}
            axis.fill_between(curves["held"].index, curves["held"], curves["attacked"], color=colour, alpha=0.2, lw=0)
            for bound, line in {"attacked": "--", "held": "-", "right": ":"}.items():
                look = {"color": colour, "markersize": 4, "label": f"{BOUNDS[bound]}, sigma {sigma}"}
                axis.plot(curves[bound], mark + line, clip_on=False, **look)
    caption = "Smoothed models: the share that no attack breaks lies between the solid and the dashed curve."
    return _with_legend(figure, caption, ncols=2)


def robustness_curves(table: pd.DataFrame) -> Figure:
    """The robustness curves of all defences (`stages.comparison.both_attackers`)."""
    titles = "alpha", "images held against both attackers"
    caption = "Images that each defence holds if a rejection within alpha times the radius is an error."
    return _defences(table, "alpha", "value", titles, caption, {}, marker="o", markersize=3)


def rejection_scores(rows: pd.DataFrame, tolerance: float) -> Figure:
    """ROC of the shield's rejection score, unsigned and signed: minus the largest threshold in `Stage.compare`."""
    groups = dict(list(rows[rows.defence == SHIELD].groupby("classifier", sort=False)))
    figure, panels = _panels(groups, 3.2, (0, 1), "clean images rejected", "attacked images rejected", sharex=True)
    for axis, of in panels:
        clean, attacked = -of.t_clean, -of["t, no_shield"][of["t, no_shield"] > -np.inf]
        for name, least, look in (("signed", -np.inf, {"color": BLUE}), ("unsigned", 0, {"color": AMBER, "ls": "--"})):
            t = [np.inf, *sorted({*clean.clip(least), *attacked.clip(least)}, reverse=True), -np.inf]
            axis.plot(*([(of.clip(least) > at).mean() for at in t] for of in (clean, attacked)), label=name, **look)
        axis.plot((clean > tolerance).mean(), (attacked > tolerance).mean(), "o", color=DARK, label="the shield's rule")
        axis.set_xlim(0, 1)
        axis.xaxis.set_major_formatter(PERCENT)
    return _with_legend(figure, "ROC of the rejection score: clean images, and AutoAttack's that fool the classifier.")


def gaps(records: pd.DataFrame, tolerance: float) -> Figure:
    """Cumulative distribution of a classifier's alignment gap: clean images, and AutoAttack's."""
    groups, y = {records.classifier.iloc[0]: records}, "share of images with a gap below"
    figure, [(axis, rows)] = _panels(groups, 2.9, (0, 1), "alignment gap g (cosine)", y)
    axis.ecdf(rows.gap_clean.dropna(), color=GREY, linewidth=1.8, label="clean")
    axis.ecdf(rows.gap_attacked.dropna(), color=RED, linestyle="--", linewidth=1.8, label="attacked")
    axis.axvline(tolerance, color="black", linewidth=0.8, label=f"tolerance {tolerance:g}: accepted to the left")
    # Linear up to the tolerance, where agreement (g = 0) and near misses lie; logarithmic beyond.
    axis.set_xscale("symlog", linthresh=tolerance or 0.001, linscale=0.5)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_formatter("{x:g}")  # powers are mathematics
    clean, attacked = ((gap <= tolerance).mean() for gap in (rows.gap_clean, rows.gap_attacked))
    caption = "Cumulative distribution of the alignment gap. The shield accepts what lies to the left of the line."
    return _with_legend(figure, caption, f"Accepted: {clean:.0%} of clean images and {attacked:.0%} of attacked ones.")


def prompt_similarity(similarity: np.ndarray, classes: list[str]) -> Figure:
    """Cosines (K,K) between the classes' text embeddings. Names are left out beyond 25 classes, numbers beyond 12."""
    names, size = (classes, (6.2, 5.2)) if len(classes) <= 25 else ([], (8, 7))
    figure, axis = plt.subplots(figsize=size)
    cells = axis.imshow(similarity, vmax=1, cmap="viridis")
    figure.colorbar(cells, label="cosine")
    for (row, column), value in np.ndenumerate(similarity) if len(classes) <= 12 else ():
        colour = "white" if cells.norm(value) < 0.6 else "black"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
    axis.grid(visible=False)
    axis.set_xticks(range(len(names)), names, **SLANTED)
    axis.set_yticks(range(len(names)), names)
    axis.set_title("Similarity of the class prompts")
    closest = (similarity - 2 * np.eye(len(similarity))).max()
    text = f"The {len(classes)} classes are rows and columns. The two closest have a cosine of {closest:.2f}."
    return described(figure, "Cosine similarity of the class prompts' embeddings.", text)


def training_curves(histories: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy by epoch on the validation split; the large mark is the epoch that was chosen."""
    figure, panels = _panels(histories, 2.9, (0, 1), "epoch", "validation accuracy")
    for axis, history in panels:
        best = history[history.chosen] if "chosen" in history else history[:0]
        for column, (curve, colour, line) in ACCURACIES.items():
            if column in history:
                look = {"color": colour, "clip_on": False}
                axis.plot(history.epoch, history[column], line, label=curve, markersize=3, **look)
                axis.plot(best.epoch, best[column], line[0], markersize=8, **look)
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    return _with_legend(figure, "Validation accuracy by epoch. The large mark is the epoch that was chosen.")


def image_grid(images: np.ndarray, titles: list[str], columns: int = 10, caption: str = "") -> Figure:
    """Images (N,H,W,3) in [0,1], with a title each, as the models get them."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, 1.25 * WIDTH / columns * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(title, weight="normal")
    text = f"By rows of {columns}: {'; '.join(' '.join(title.split()) for title in titles)}."
    return described(figure, caption or "Images as the models get them.", text)
