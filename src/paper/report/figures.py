"""Figures of records, histories and images, in one style."""

import unicodedata
import warnings

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from multishield.records import TITLES, rejected
from paper.report.tables import BOUNDS

GREEN, ORANGE, RED = "#3b7f5c", "#d9a441", "#b5403a"
BLUE, AMBER = "#2a6fb0", "#d9822b"
COLOURS = mpl.color_sequences["petroff10"]  # told apart with any colour vision (Petroff 2021)
LOOKS = tuple(zip(COLOURS, ("-", "--", "-.", ":") * 3, strict=False))  # of defences
PERCENT, POINTS = "{x:.0%}", {"capsize": 2, "elinewidth": 0.6, "markersize": 4}
OUTCOMES = {"accepted, correct": GREEN, "rejected": ORANGE, "accepted, wrong": RED}
# Column of a training history -> its curve.
ACCURACIES = {"clean_accuracy": "clean", "pgd_accuracy": "PGD", "zero_shot_accuracy": "zero-shot"}
ACCURACIES |= {"noisy_accuracy": "under noise"}


def style() -> None:
    """Set the matplotlib style of every figure."""
    warnings.filterwarnings("ignore", "Glyph .* missing")  # a layout may be made before `_legible` finds a font
    changes = {"figure.dpi": 110, "savefig.dpi": 160, "figure.constrained_layout.use": True, "grid.alpha": 0.5}
    changes |= {"axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False}  # "$x$" is a name
    plt.style.use(["seaborn-v0_8-whitegrid", "seaborn-v0_8-paper", changes])


def _legible(figure: Figure) -> Figure:
    """The figure in fonts that have its letters; a sentence below it says for which script none is installed."""
    texts, families = figure.findobj(mpl.text.Text), []
    letters = {letter for text in texts for letter in text.get_text() if letter.isprintable()}
    own = font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).family_name
    fonts = {font.name: font.fname for font in font_manager.fontManager.ttflist if "Last Resort" not in font.name}
    for name in sorted(fonts, key=lambda name: (name != own, name)):  # the Last Resort draws boxes
        lost = {letter for letter in letters if not font_manager.get_font(fonts[name]).get_char_index(ord(letter))}
        families, letters = [*families, *[name] * (lost != letters)], lost
    for text in texts:
        text.set_fontfamily(families)
    if letters:
        script = unicodedata.name(min(letters), "unknown").split()[0].lower()
        figure.supxlabel(f"No installed font has the {script} letters of these names; install the Noto fonts.", size=7)
    return figure


def _with_legend(figure: Figure, loc: str = "outside upper center", ncols: int = 3, **options) -> Figure:
    """The figure with one legend for all panels, in which each label stands once."""
    entries = [entry for axis in figure.axes for entry in zip(*axis.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in entries}
    figure.legend(handles.values(), handles.keys(), loc=loc, ncols=ncols, frameon=False, **options)
    return _legible(figure)


def _panels(groups: dict, size: tuple, ylim: tuple, x: str, y: str, columns: int = 0, **shared) -> tuple[Figure, list]:
    """A figure, and the axes and the group of each panel; groups by title, the size of a panel in inches."""
    columns = columns or (2 if len(groups) == 4 else min(len(groups), 3))
    rows = -(-len(groups) // columns)
    whole = (max(size[0] * columns, 6), size[1] * rows)
    figure, axes = plt.subplots(rows, columns, figsize=whole, squeeze=False, sharey=True, **shared)
    plt.setp(axes.flat[len(groups) :], visible=False)
    plt.setp(axes[:, 0], ylabel=y)
    for axis, title in zip(axes.flat, groups, strict=False):
        axis.set(title=title, xlabel=x, ylim=ylim)
        axis.tick_params(labelbottom=True)  # sharing would leave them to the last row, which may not be full
    axes[0, 0].yaxis.set_major_formatter(PERCENT)
    return figure, list(zip(axes.flat, groups.values(), strict=False))


def scenarios(records: pd.DataFrame) -> Figure:
    """Shares of images by outcome, per classifier and scenario: accepted and correct, rejected, accepted and wrong."""
    groups = {f"{name} (N = {rows.image.nunique()})": rows for name, rows in records.groupby("classifier", sort=False)}
    figure, panels = _panels(groups, (4.6, 3.9), (0, 1), "", "share of all images")
    for axis, records in panels:
        bars = {"clean,\nno shield": ("no_shield", "clean"), "clean,\nshield": ("unaware", "clean")}
        # Denial is left out: a rejected image is its attacker's success.
        bars |= {TITLES[s]: (s, "attacked") for s in records.scenario.unique() if s != "denial"}
        shown = [(records[records.scenario == scenario], when) for scenario, when in bars.values()]
        correct = np.array([(rows[f"{when}_decision"] == rows.label).mean() for rows, when in shown])
        refused = np.array([rejected(rows, when).mean() for rows, when in shown])
        shares = pd.DataFrame(zip(correct, refused, 1 - correct - refused, strict=True), list(bars), list(OUTCOMES))
        shares.plot.bar(stacked=True, ax=axis, color=OUTCOMES, width=0.72, rot=30, fontsize=8, legend=False)
        axis.grid(axis="x", visible=False)
    return _with_legend(figure)


def rejection_curves(table: pd.DataFrame) -> Figure:
    """Robust accuracy against clean rejection: the exact curve of each defence (`stages.comparison.curves`)."""
    groups = dict(list(table.groupby("classifier", sort=False)))
    figure, panels = _panels(groups, (4.8, 4.2), (-0.02, 1.02), "clean rejection", "robust accuracy, worst case")
    for axis, rows in panels:
        for (defence, curve), (colour, line) in zip(rows.groupby("defence", sort=False), LOOKS, strict=False):
            axis.step(curve.rejection, curve.robust, line, where="post", color=colour, label=defence, linewidth=1.4)
        axis.xaxis.set_major_locator(mpl.ticker.MultipleLocator(0.05))
        axis.xaxis.set_major_formatter(PERCENT)
    return _with_legend(figure)


def studies(table: pd.DataFrame) -> Figure:
    """Robust accuracy and clean rejection by study and classifier, with 95 % intervals (`stages.studies.table`)."""
    groups = {f"{study}: {name}": rows for (study, name), rows in table.groupby(["study", "classifier"], sort=False)}
    figure, panels = _panels(groups, (4.6, 3.4), (-0.02, 1.02), "", "", columns=table.classifier.nunique())
    colours = zip(table.of.unique(), (RED, GREEN, BLUE, "#7d5ba6"), strict=False)
    series = [(f"robust, {of}", of, "robust_accuracy", colour, "o-") for of, colour in colours]
    series.append(("clean rejection, shield", "shield", "clean_rejection", ORANGE, "s--"))
    for axis, rows in panels:
        for label, of, metric, colour, line in series:
            curve = rows[(rows.of == of) & (rows.metric == metric)]
            if len(curve):
                look = POINTS | {"color": colour, "fmt": line, "label": label}
                error = (curve.ratio - curve.low).abs(), (curve.high - curve.ratio).abs()  # rounding may be below 0
                axis.errorbar(range(len(curve)), curve.ratio, error, **look)
        values, rotation = rows.value.unique(), 20 if rows.study.iloc[0] == "prompts" else 0
        axis.set_xticks(range(len(values)), values, rotation=rotation, fontsize=8)
    return _with_legend(figure, ncols=4, fontsize=8)


def bounds(table: pd.DataFrame) -> Figure:
    """The bracket of smoothed models by L2 radius (`stages.studies.bounds`): the true share lies in the band."""
    groups = dict(list(table.groupby("classifier", sort=False)))
    figure, panels = _panels(groups, (4.2, 3.4), (-0.02, 1.02), "L2 radius in units of [0,1] pixels", "share of images")
    for axis, rows in panels:
        looks = zip(rows.groupby("value", sort=False), COLOURS, strict=False)
        for (sigma, of), colour in looks:
            curves = {bound: curve.set_index("radius").ratio for bound, curve in of.groupby("bound")}
            band = curves["held"].index, curves["held"], curves["attacked"]
            axis.fill_between(*band, color=colour, alpha=0.2, linewidth=0)
            for bound, line in {"attacked": "o--", "held": "o-", "right": ":"}.items():
                look = {"color": colour, "markersize": 4, "label": f"{BOUNDS[bound]}, sigma {sigma}"}
                axis.plot(curves[bound], line, **look)
    return _with_legend(figure, ncols=2, fontsize=8)


def robustness_curves(table: pd.DataFrame) -> Figure:
    """The robustness curves of all defences (`stages.comparison.both_attackers`)."""
    groups, x = dict(list(table.groupby("classifier", sort=False))), "alpha: rejecting within alpha * eps is an error"
    figure, panels = _panels(groups, (4.8, 3.8), (-0.02, 1.02), x, "images held")
    for axis, rows in panels:
        for (defence, curve), (colour, line) in zip(rows.groupby("defence", sort=False), LOOKS, strict=False):
            axis.plot(curve.alpha, curve.value, line, color=colour, label=defence, marker="o", markersize=3)
    return _with_legend(figure)


def gaps(records: pd.DataFrame, tolerance: float) -> Figure:
    """Cumulative distribution of the alignment gap: clean images, AutoAttack's, and those of the adaptive attacks."""
    groups, y = dict(list(records.groupby("classifier", sort=False))), "share of images with a gap below"
    figure, panels = _panels(groups, (4.6, 3.9), (0, 1.02), "alignment gap g (cosine)", y, sharex=True)
    looks = (("#5b6472", "-"), (BLUE, "--"), ("#7d5ba6", "-."), (RED, ":"))
    for axis, records in panels:
        rows = dict(list(records.groupby("scenario")))
        curves = {"clean": rows["unaware"].gap_clean, "AutoAttack, unaware": rows["unaware"].gap_attacked}
        curves |= {TITLES[s]: rows[s].gap_attacked for s in ("paper", "joint") if s in rows}
        for (label, values), (colour, dashes) in zip(curves.items(), looks, strict=False):
            axis.ecdf(values.dropna(), color=colour, linestyle=dashes, linewidth=1.8, label=label)
        axis.axvline(tolerance, color="black", linewidth=0.8, label=f"tolerance {tolerance:g}: accepted to the left")
        # Linear up to the tolerance, where agreement (g = 0) and near misses lie; logarithmic beyond.
        axis.set_xscale("symlog", linthresh=tolerance or 0.001, linscale=0.5)
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))  # powers are mathematics
    return _with_legend(figure)


def example(images: dict[str, np.ndarray], scores: dict[str, pd.DataFrame], classes: list[str], label: int) -> Figure:
    """An image clean and attacked, above both models' scores of at most 12 classes; see `shields.examples`."""
    highest = pd.concat(list(scores.values()), axis=1).max(axis=1)
    highest[label] = np.inf
    shown = sorted(highest.nlargest(12).index)
    size, rows = (2.6 * len(images), 4.6), np.arange(len(shown))
    figure, axes = plt.subplots(2, len(images), figsize=size, height_ratios=(1, 1.15), squeeze=False)
    for (top, below), (title, pixels) in zip(axes.T, images.items(), strict=True):
        top.imshow(pixels, interpolation="nearest")
        top.set_title(title, fontsize=9)
        top.axis("off")
        scores[title].loc[shown].plot.barh(ax=below, color=[BLUE, AMBER], width=0.76, legend=False)
        below.set(xlim=(0, 1), ylim=(len(shown) - 0.4, -0.6))
        below.set_xlabel("probability", fontsize=8)
        below.tick_params(axis="x", labelsize=7)
        below.set_yticks(rows, [""] * len(shown), fontsize=7)
        below.grid(axis="y", visible=False)
    axes[1, 0].set_yticks(rows, [classes[k] for k in shown], fontsize=7)
    axes[1, 0].get_yticklabels()[shown.index(label)].set_fontweight("bold")
    return _with_legend(figure, loc="outside lower center", ncols=2, fontsize=8)


def prompt_similarity(similarity: np.ndarray, classes: list[str]) -> Figure:
    """Cosines (K,K) between the classes' text embeddings. Names are left out beyond 25 classes, numbers beyond 12."""
    names, size = (classes, (6.2, 5.2)) if len(classes) <= 25 else ([], (8, 7))
    figure, axis = plt.subplots(figsize=size)
    cells = axis.imshow(similarity, vmax=1, cmap="viridis")
    figure.colorbar(cells, label="cosine")
    for (row, column), value in np.ndenumerate(similarity) if len(classes) <= 12 else ():
        colour = "white" if cells.norm(value) < 0.6 else "black"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", size=7, color=colour)
    axis.grid(visible=False)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(names)), names)
    axis.set_title("Similarity of the class prompts")
    return _legible(figure)


def training_curves(histories: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy by epoch on the validation split; the dot is the epoch that was chosen."""
    figure, panels = _panels(histories, (4.2, 3.2), (0, 1.02), "epoch", "validation accuracy")
    for axis, history in panels:
        best = history[history.chosen] if "chosen" in history else history[:0]
        for (column, curve), colour in zip(ACCURACIES.items(), (GREEN, RED, AMBER, BLUE), strict=True):
            if column in history:
                axis.plot(history.epoch, history[column], color=colour, label=curve, marker=".")
                axis.plot(best.epoch, best[column], "o", color=colour)
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        axis.legend(fontsize=8)
    return figure


def image_grid(images: np.ndarray, titles: list[str], columns: int = 10) -> Figure:
    """Images (N,H,W,3) in [0,1], with a title each."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.1 * columns, 1.3 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(title, fontsize=7)
    return _legible(figure)
