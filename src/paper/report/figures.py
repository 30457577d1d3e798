"""Figures, as functions of records, histories and images. One style for all."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from multishield.records import SCENARIOS, TITLES, rejected

GREEN, ORANGE, RED = "#3b7f5c", "#d9a441", "#b5403a"
BLUE, AMBER = "#2a6fb0", "#d9822b"
OUTCOMES = {"accepted, correct": GREEN, "rejected": ORANGE, "accepted, wrong": RED}
# Column of a training history -> its curve.
ACCURACIES = {"clean_accuracy": "clean", "pgd_accuracy": "PGD", "zero_shot_accuracy": "zero-shot"}


def style() -> None:
    """Set the matplotlib style of every figure; fonts with more scripts follow matplotlib's own where they are."""
    wide = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Arial Unicode MS", "PingFang SC", "SimHei")
    fonts = [name for name in wide if name in font_manager.get_font_names()]
    changes = {"figure.dpi": 110, "savefig.dpi": 160, "figure.constrained_layout.use": True, "grid.alpha": 0.5}
    changes |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium"}
    changes |= {"text.parse_math": False, "font.family": ["sans-serif", *fonts]}  # a class may be called "$x$"
    sns.set_theme(context="paper", style="whitegrid", font_scale=1.05, rc=changes)


def channels_last(images: torch.Tensor) -> np.ndarray:
    """Images (N,3,H,W), uint8 or float in [0,1], as (N,H,W,3) floats in [0,1], for matplotlib."""
    scale = 255 if images.dtype == torch.uint8 else 1
    return images.permute(0, 2, 3, 1).numpy() / scale


def _percent(*sides: Axis) -> None:
    """Label fractions as per cent."""
    for side in sides:
        side.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))


def _legend(figure: Figure, handles, labels, *, loc: str = "outside upper center", ncols: int = 3, **options) -> None:
    figure.legend(handles, labels, loc=loc, ncols=ncols, frameon=False, **options)


def _errors(value: pd.Series, low: pd.Series, high: pd.Series) -> tuple[pd.Series, pd.Series]:
    """The lengths of error bars; rounding may put a bound on the wrong side of its value."""
    return (value - low).clip(lower=0), (high - value).clip(lower=0)


def _points(axis: Axes, x, value: pd.Series, low: pd.Series, high: pd.Series, **look):
    """Draw points with their intervals."""
    return axis.errorbar(x, value, _errors(value, low, high), capsize=2, elinewidth=0.6, markersize=4, **look)


def _panels(
    groups: dict[str, Any], size: tuple[float, float], ylim: tuple[float, float], x: str, y: str, columns=0, **shared
) -> tuple[Figure, list[tuple[Axes, Any]]]:
    """A figure with a panel per group, at most three in a row unless told; y is a fraction.

    Args:
        groups: by title. size: of a panel, in inches. x, y: labels of the axes; that of y stands at the left edge.

    Returns:
        The figure; and the axes and the group of each panel.
    """
    columns = columns or (2 if len(groups) == 4 else min(len(groups), 3))
    rows = -(-len(groups) // columns)
    whole = (max(size[0] * columns, 6), size[1] * rows)
    figure, axes = plt.subplots(rows, columns, figsize=whole, squeeze=False, sharey=True, **shared)
    plt.setp(axes.flat[len(groups) :], visible=False)
    plt.setp(axes[:, 0], ylabel=y)
    for axis, title in zip(axes.flat, groups, strict=False):
        axis.set(title=title, xlabel=x, ylim=ylim)
        axis.tick_params(labelbottom=True)  # sharing would leave them to the last row, which may not be full
    _percent(axes[0, 0].yaxis)
    return figure, list(zip(axes.flat, groups.values(), strict=False))


def _shares(rows: pd.DataFrame, when: str) -> tuple[float, float, float]:
    correct, refused = (rows[f"{when}_decision"] == rows.label).mean(), rejected(rows, when).mean()
    return correct, refused, 1 - correct - refused


def scenarios(records: pd.DataFrame) -> Figure:
    """Shares of images by outcome, per classifier and scenario: accepted and correct, rejected, accepted and wrong."""
    groups = {f"{name} (N = {rows.image.nunique()})": rows for name, rows in records.groupby("classifier", sort=False)}
    figure, panels = _panels(groups, (4.6, 3.9), (0, 1), "", "share of all images")
    for axis, records in panels:
        rows = dict(list(records.groupby("scenario")))
        bars = {"clean,\nno shield": _shares(rows["no_shield"], "clean")}
        bars |= {"clean,\nshield": _shares(rows["unaware"], "clean")}
        # Denial is left out: a rejected image is its attacker's success.
        bars |= {TITLES[s]: _shares(rows[s], "attacked") for s in SCENARIOS if s in rows and s != "denial"}
        below = np.zeros(len(bars))
        for share, (label, colour) in zip(zip(*bars.values(), strict=True), OUTCOMES.items(), strict=True):
            axis.bar(list(bars), share, bottom=below, color=colour, label=label, width=0.72)
            below += np.array(share)
        axis.grid(axis="x", visible=False)
        axis.tick_params(axis="x", labelsize=8, rotation=30)
    _legend(figure, *axis.get_legend_handles_labels())
    return figure


def rejection_curves(table: pd.DataFrame) -> Figure:
    """Robust accuracy against clean rejection, a curve per defence, from `stages.comparison.table`.

    At the same clean rejection the higher defence is better. Bars are 95 % Wilson intervals.
    """
    groups = {f"{name} (N = {rows.n.iloc[0]})": rows for name, rows in table.groupby("classifier", sort=False)}
    figure, panels = _panels(groups, (4.8, 4.2), (-0.02, 1.02), "clean rejection", "robust accuracy, worst case")
    for axis, rows in panels:
        looks = zip(sns.color_palette("colorblind"), "osD^vP*Xh", strict=False)
        for (defence, curve), (colour, marker) in zip(rows.groupby("defence", sort=False), looks, strict=False):
            curve = curve.sort_values("rejection")
            look = {"color": colour, "marker": marker, "linewidth": 1.4, "label": defence}
            _points(axis, curve.rejection, curve.robust, curve.robust_low, curve.robust_high, **look)
        axis.set_xlim(left=0)
        _percent(axis.xaxis)
    _legend(figure, *axis.get_legend_handles_labels())
    return figure


def studies(table: pd.DataFrame) -> Figure:
    """Robust accuracy and clean rejection at each value of each study, from `stages.studies.table`.

    A row of panels per study, a panel per classifier. Bars are 95 % Wilson intervals.
    """
    groups = {f"{study}: {name}": rows for (study, name), rows in table.groupby(["study", "classifier"], sort=False)}
    figure, panels = _panels(groups, (4.6, 3.4), (-0.02, 1.02), "", "", columns=table.classifier.nunique())
    robust = zip(dict.fromkeys(table.of), (RED, GREEN, BLUE), strict=False)
    series = [(f"robust, {of}", of, "robust_accuracy", colour, "o-") for of, colour in robust]
    series.append(("clean rejection, shield", "shield", "clean_rejection", ORANGE, "s--"))
    legend = {}
    for axis, rows in panels:
        for label, of, metric, colour, line in series:
            curve = rows[(rows.of == of) & (rows.metric == metric)]
            if len(curve):
                x, look = range(len(curve)), {"color": colour, "fmt": line}
                legend[label] = _points(axis, x, curve.ratio, curve.low, curve.high, **look)
        values, long = list(dict.fromkeys(rows.value)), rows.study.iloc[0] == "prompts"
        axis.set_xticks(range(len(values)), values, rotation=20 if long else 0, fontsize=8)
    _legend(figure, legend.values(), legend.keys(), ncols=4, fontsize=8)
    return figure


def robustness_curves(curves: dict[str, pd.DataFrame]) -> Figure:
    """The robustness curve of each classifier's shield, with 95 % Wilson intervals (`portfolio.robustness_curve`)."""
    label = "alpha: rejecting within alpha \N{MULTIPLICATION SIGN} eps is an error"
    figure, axis = plt.subplots(figsize=(5.2, 3.6))
    for (name, curve), colour in zip(curves.items(), sns.color_palette("colorblind"), strict=False):
        axis.plot(curve.alpha, curve.value, "o-", color=colour, label=name, markersize=4)
        axis.fill_between(curve.alpha, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    axis.set(xlabel=label, ylabel="images held", ylim=(0, 1.02))
    _percent(axis.yaxis)
    axis.legend(fontsize=8)
    return figure


def gaps(records: pd.DataFrame, tolerance: float) -> Figure:
    """Cumulative distribution of the alignment gap: clean images, AutoAttack's, and those of the adaptive attacks.

    Images to the left of the tolerance are accepted.
    """
    groups = dict(list(records.groupby("classifier", sort=False)))
    labels = ("alignment gap g (cosine)", "share of images with a gap below")
    figure, panels = _panels(groups, (4.6, 3.9), (0, 1.02), *labels, sharex=True)
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
    _legend(figure, *axis.get_legend_handles_labels())
    return figure


def tolerance_curve(records: pd.DataFrame, alone: pd.DataFrame, tolerance: float) -> Figure:
    """Clean rejection against robust accuracy as the tolerance varies, for an attacker who is unaware of the shield.

    Args:
        records: of scenario 2, with the gaps. alone: of scenario 1, with the classifier's decisions on the same images.
    """
    wrong = (alone.attacked_decision != alone.label).to_numpy()
    tolerances = np.unique(np.append([tolerance], np.quantile(records.gap_attacked, np.linspace(0, 1, 60))))
    rejection = [(records.gap_clean > t).mean() for t in (tolerance, *tolerances)]
    robust = [1 - (wrong & (records.gap_attacked <= t).to_numpy()).mean() for t in (tolerance, *tolerances)]
    figure, axis = plt.subplots(figsize=(5.2, 3.6))
    axis.plot(rejection[1:], robust[1:], ".-", color=BLUE, markersize=4)
    axis.plot(rejection[0], robust[0], "o", color=RED, label=f"tolerance {tolerance:g}")
    axis.set(xlabel="clean rejection", ylabel="robust accuracy, unaware attacker", ylim=(-0.02, 1.02))
    _percent(axis.xaxis, axis.yaxis)
    axis.legend(fontsize=8)
    return figure


def attacks(metrics: pd.DataFrame) -> Figure:
    """Robust accuracy under each attack that knows the shield, with 95 % Wilson intervals."""
    robust = metrics[metrics.metric == "robust_accuracy"].set_index("scenario")
    shown = robust.loc[[s for s in ("paper", "joint", "worst_case") if s in robust.index]]
    figure, axis = plt.subplots(figsize=(5.2, 1.9))
    error = _errors(shown.value, shown.low, shown.high)
    axis.barh([TITLES[s] for s in shown.index], shown.value, xerr=error, capsize=3, height=0.6, color=RED)
    axis.set(xlim=(0, 1), xlabel="robust accuracy with the shield")
    _percent(axis.xaxis)
    axis.invert_yaxis()
    return figure


def example(images: dict[str, np.ndarray], scores: dict[str, pd.DataFrame], classes: list[str], label: int) -> Figure:
    """An image clean and attacked, above the scores of both models.

    Args:
        images, scores, label: see `shields.examples`. Of more than 12 classes the true one and those of the highest
            scores are shown.
    """
    highest = pd.concat(list(scores.values()), axis=1).max(axis=1)
    highest[label] = np.inf
    shown = sorted(highest.nlargest(12).index)
    size, rows = (2.6 * len(images), 4.6), np.arange(len(shown))
    figure, axes = plt.subplots(2, len(images), figsize=size, height_ratios=(1, 1.15), squeeze=False)
    for (top, below), (title, pixels) in zip(axes.T, images.items(), strict=True):
        top.imshow(pixels, interpolation="nearest")
        top.set_title(title, fontsize=9)
        top.axis("off")
        bars = scores[title].loc[shown]
        below.barh(rows - 0.2, bars.classifier, height=0.38, color=BLUE, label="classifier")
        below.barh(rows + 0.2, bars.CLIP, height=0.38, color=AMBER, label="CLIP")
        below.set(xlim=(0, 1), ylim=(len(shown) - 0.4, -0.6))
        below.set_xlabel("probability", fontsize=8)
        below.tick_params(axis="x", labelsize=7)
        below.set_yticks(rows, [""] * len(shown), fontsize=7)
        below.grid(axis="y", visible=False)
    axes[1, 0].set_yticks(rows, [classes[k] for k in shown], fontsize=7)
    axes[1, 0].get_yticklabels()[shown.index(label)].set_fontweight("bold")
    _legend(figure, *below.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def prompt_similarity(similarity: np.ndarray, classes: list[str]) -> Figure:
    """Cosines (K,K) between the classes' text embeddings. Names are left out beyond 25 classes, numbers beyond 12."""
    few = len(classes) <= 25
    figure, axis = plt.subplots(figsize=(6.2, 5.2) if few else (8, 7))
    named = classes if few else False
    look = {"cmap": "viridis", "vmax": 1, "square": True, "xticklabels": named, "yticklabels": named}
    look |= {"annot": len(classes) <= 12, "fmt": ".2f", "annot_kws": {"size": 7}, "cbar_kws": {"label": "cosine"}}
    sns.heatmap(similarity, ax=axis, **look)
    axis.tick_params(axis="x", rotation=45)
    axis.tick_params(axis="y", rotation=0)
    plt.setp(axis.get_xticklabels(), ha="right", rotation_mode="anchor")
    axis.set_title("Similarity of the class prompts")
    return figure


def training_curves(histories: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy by epoch on the validation split; the dot is the epoch that was chosen."""
    figure, panels = _panels(histories, (4.2, 3.2), (0, 1.02), "epoch", "validation accuracy")
    for axis, history in panels:
        best = history[history.chosen] if "chosen" in history else history[:0]
        marker = "." if len(history) < 3 else None
        for (column, curve), colour in zip(ACCURACIES.items(), (GREEN, RED, AMBER), strict=True):
            if column in history:
                axis.plot(history.epoch, history[column], color=colour, label=curve, marker=marker)
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
    return figure
