"""Figures, as functions of records, histories and images. One style for all."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multishield.files import write_atomically
from multishield.records import SCENARIOS, TITLES

GREEN, ORANGE, RED = "#3b7f5c", "#d9a441", "#b5403a"
OUTCOMES = {"accepted, correct": GREEN, "rejected": ORANGE, "accepted, wrong": RED}
REJECTED = ("clean rejection, shield", "shield")
SCENARIO_COLOURS = {"clean": "#5b6472", "multishield": "#2a6fb0", "paper": "#7d5ba6", "joint": RED, "adaptive": RED}


def style() -> None:
    """The matplotlib style of every figure, in notebooks and files alike."""
    changes = {"figure.dpi": 110, "savefig.dpi": 160, "figure.constrained_layout.use": True, "grid.alpha": 0.5}
    changes |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium"}
    changes |= {"text.parse_math": False, "font.family": ["sans-serif", *_wide_fonts()]}  # a class may be called "$x$"
    sns.set_theme(context="paper", style="whitegrid", font_scale=1.05, rc=changes)


def _wide_fonts() -> list[str]:
    """Fonts of this machine that have more scripts than matplotlib's own, which is tried first."""
    wanted = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Arial Unicode MS", "PingFang SC", "SimHei")
    return [name for name in wanted if name in font_manager.get_font_names()]


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, atomically, the same bytes for the same figure."""
    return write_atomically(path, lambda p: figure.savefig(p, format="png", metadata={"Software": None}))


def channels_last(images: torch.Tensor) -> np.ndarray:
    """Images (N,3,H,W), uint8 or float in [0,1], as (N,H,W,3) floats in [0,1], for matplotlib."""
    scale = 255 if images.dtype == torch.uint8 else 1
    return images.permute(0, 2, 3, 1).numpy() / scale


def _panels(count: int, width: float, height: float, label: str, **shared) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most three in a row, with a label of the y axis at the left edge; its panels."""
    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    size = (max(width * columns, 6), height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True, **shared)
    panels = list(axes.flat)
    plt.setp(panels[count:], visible=False)
    for axis in panels:
        axis.tick_params(labelbottom=True)  # sharing would leave them to the last row, which may not be full
    plt.setp(panels[:count:columns], ylabel=label)
    return figure, panels[:count]


def _shares(group: pd.DataFrame, when: str, classes: int) -> tuple[float, float, float]:
    decision = group[f"{when}_decision"]
    correct, rejected = (decision == group.label).mean(), (decision == classes).mean()
    return correct, rejected, 1 - correct - rejected


def scenarios(records: pd.DataFrame, classes: int) -> Figure:
    """What becomes of the images, per classifier: accepted and correct, rejected, accepted and wrong."""
    names = list(dict.fromkeys(records.classifier))
    figure, panels = _panels(len(names), 4.6, 3.9, "share of all images")
    for axis, name in zip(panels, names, strict=True):
        of = dict(list(records[records.classifier == name].groupby("scenario")))
        clean = {"clean,\nno shield": "baseline", "clean,\nshield": "multishield"}
        bars = {title: _shares(of[s], "clean", classes) for title, s in clean.items()}
        # Not that of denial: there, what is rejected is the attacker's success.
        bars |= {TITLES[s]: _shares(of[s], "attacked", classes) for s in SCENARIOS if s in of and s != "denial"}
        below = np.zeros(len(bars))
        for share, (label, colour) in zip(zip(*bars.values(), strict=True), OUTCOMES.items(), strict=True):
            axis.bar(list(bars), share, bottom=below, color=colour, label=label, width=0.72)
            below += np.array(share)
        axis.set(title=f"{name} (N = {len(of['baseline'])})", ylim=(0, 1))
        axis.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
        axis.grid(axis="x", visible=False)
        axis.tick_params(axis="x", labelsize=8, rotation=30)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def rejection_curves(table: pd.DataFrame) -> Figure:
    """Robust accuracy against clean rejection, a curve per defence, from `evaluation.comparison.table`.

    Bars are 95 % Wilson intervals. Higher is better at the same place; what lies further right has paid with rejection.
    """
    names, defences = list(dict.fromkeys(table.classifier)), list(dict.fromkeys(table.defence))
    figure, panels = _panels(len(names), 4.8, 4.2, "robust accuracy, worst case")
    for axis, name in zip(panels, names, strict=True):
        for defence, colour, marker in zip(defences, sns.color_palette("colorblind"), "osD^vP*Xh", strict=False):
            of = table[(table.classifier == name) & (table.defence == defence)].sort_values("rejection")
            error = (of.robust - of.robust_low).clip(lower=0), (of.robust_high - of.robust).clip(lower=0)
            style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.4, "elinewidth": 0.6}
            axis.errorbar(of.rejection, of.robust, yerr=error, label=defence, capsize=2, **style)
        axis.set(title=f"{name} (N = {table[table.classifier == name].n.iloc[0]})", xlabel="clean rejection")
        axis.set(ylim=(-0.02, 1.02))
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))
    panels[0].yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def studies(table: pd.DataFrame) -> Figure:
    """Robust accuracy and clean rejection at each value of each study, from `evaluation.studies.table`.

    A row of panels per study, a panel per classifier. Bars are 95 % Wilson intervals.
    """
    names, varied = list(dict.fromkeys(table.classifier)), list(dict.fromkeys(table.study))
    size = (max(4.6 * len(names), 6), 3.4 * len(varied))
    figure, axes = plt.subplots(len(varied), len(names), figsize=size, squeeze=False, sharey=True)
    colours, labels = dict(zip(dict.fromkeys(table.of), (RED, GREEN, "#2a6fb0"), strict=False)), {}
    for study, row in zip(varied, axes, strict=True):
        for name, axis in zip(names, row, strict=True):
            rows = table[(table.study == study) & (table.classifier == name)]
            values = list(dict.fromkeys(rows.value))
            series = [(f"robust, {of}", of, "robust_accuracy", colours[of], "o-") for of in dict.fromkeys(rows.of)]
            for label, of, metric, colour, line in [*series, (*REJECTED, "clean_rejection", ORANGE, "s--")]:
                found = rows[(rows.of == of) & (rows.metric == metric)]
                error = (found.ratio - found.low).clip(lower=0), (found.high - found.ratio).clip(lower=0)
                style = {"color": colour, "fmt": line, "markersize": 4, "elinewidth": 0.6, "capsize": 2}
                labels[label] = axis.errorbar(range(len(found)), found.ratio, yerr=error, **style)
            axis.set_xticks(range(len(values)), values, rotation=20 if study == "prompts" else 0, fontsize=8)
            axis.set(title=f"{study}: {name}", ylim=(-0.02, 1.02))
    axes[0, 0].yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    figure.legend(labels.values(), labels.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def alpha_curves(curves: dict[str, pd.DataFrame]) -> Figure:
    """The robustness curve per classifier: what is held if rejecting within alpha * eps is an error, with intervals."""
    figure, axis = plt.subplots(figsize=(5.2, 3.6))
    for (name, curve), colour in zip(curves.items(), sns.color_palette("colorblind"), strict=False):
        axis.plot(curve.alpha, curve.value, "o-", color=colour, label=name, markersize=4)
        axis.fill_between(curve.alpha, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    axis.set(
        xlabel="alpha: rejecting within alpha \N{MULTIPLICATION SIGN} eps is an error",
        ylabel="images held",
        ylim=(0, 1.02),
    )
    axis.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    axis.legend(fontsize=8)
    return figure


def gaps(records: pd.DataFrame, tolerance: float) -> Figure:
    """Distribution of the alignment gap: clean images, AutoAttack's, and those of the adaptive attacks.

    The share of images to the left of the tolerance is accepted.
    """
    names = list(dict.fromkeys(records.classifier))
    figure, panels = _panels(len(names), 4.6, 3.9, "share of images with a gap below", sharex=True)
    for axis, name in zip(panels, names, strict=True):
        of = dict(list(records[records.classifier == name].groupby("scenario")))
        series = {"clean": of["multishield"].gap_clean, "multishield": of["multishield"].gap_attacked}
        series |= {s: of[s].gap_attacked for s in ("paper", "joint") if s in of}
        for (label, values), dashes in zip(series.items(), ("-", "--", "-.", ":"), strict=False):
            text = "AutoAttack, unaware" if label == "multishield" else TITLES.get(label, label)
            axis.ecdf(values.dropna(), color=SCENARIO_COLOURS[label], linestyle=dashes, linewidth=1.8, label=text)
        axis.axvline(tolerance, color="black", linewidth=0.8, label=f"tolerance {tolerance:g}: accepted to the left")
        # Linear up to the tolerance, where agreement (g = 0) and near misses lie; logarithmic beyond.
        axis.set_xscale("symlog", linthresh=tolerance or 0.001, linscale=0.5)
        axis.set(title=name, xlabel="alignment gap g (cosine)", ylim=(0, 1.02))
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))  # powers are mathematics
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def tolerance_curve(records: pd.DataFrame, alone: pd.DataFrame, tolerance: float) -> Figure:
    """Clean rejection against robust accuracy as the tolerance varies, for an attacker who is unaware of the shield.

    Args:
        records: of scenario 2, with the gaps. alone: of scenario 1, the same images: what the classifier decides.
    """
    wrong, label = (alone.attacked_decision != alone.label).to_numpy(), f"tolerance {tolerance:g}"
    chosen = np.unique(np.append([tolerance], np.quantile(records.gap_attacked, np.linspace(0, 1, 60))))
    rejected = [(records.gap_clean > t).mean() for t in (tolerance, *chosen)]
    robust = [1 - (wrong & (records.gap_attacked <= t).to_numpy()).mean() for t in (tolerance, *chosen)]
    figure, axis = plt.subplots(figsize=(5.2, 3.6))
    axis.plot(rejected[1:], robust[1:], ".-", color=SCENARIO_COLOURS["multishield"], markersize=4)
    axis.plot(rejected[0], robust[0], "o", color=RED, label=label)
    axis.set(xlabel="clean rejection", ylabel="robust accuracy, unaware attacker", ylim=(-0.02, 1.02))
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))
    axis.legend(fontsize=8)
    return figure


def attacks(metrics: pd.DataFrame) -> Figure:
    """Robust accuracy under each attack that knows the shield, with 95 % Wilson intervals."""
    robust = metrics[metrics.metric == "robust_accuracy"].set_index("scenario")
    shown = robust.loc[[s for s in ("paper", "joint", "adaptive") if s in robust.index]]
    figure, axis = plt.subplots(figsize=(5.2, 1.9))
    error = (shown.value - shown.low).clip(lower=0), (shown.high - shown.value).clip(lower=0)
    axis.barh([TITLES[s] for s in shown.index], shown.value, xerr=error, capsize=3, height=0.6, color=RED)
    axis.set(xlim=(0, 1), xlabel="robust accuracy with the shield")
    axis.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))
    axis.invert_yaxis()
    return figure


def example(images: dict[str, np.ndarray], scores: dict[str, pd.DataFrame], classes: list[str], label: int) -> Figure:
    """One image through the scenarios, each with both models' scores.

    Args:
        images, scores, label: see `examples.Example`. Of more than 12 classes, the true one and those of the highest
            scores are shown.
    """
    highest = pd.concat(list(scores.values()), axis=1).max(axis=1)
    highest[label] = np.inf
    shown = sorted(highest.nlargest(12).index)
    names = [classes[k] for k in shown]
    size = (2.6 * len(images), 4.6)
    figure, axes = plt.subplots(2, len(images), figsize=size, height_ratios=(1, 1.15), squeeze=False)
    at = np.arange(len(shown))
    for column, (title, pixels) in enumerate(images.items()):
        top, below = axes[:, column]
        top.imshow(pixels, interpolation="nearest")
        top.set_title(title, fontsize=9)
        top.axis("off")
        of = scores[title].loc[shown]
        below.barh(at - 0.2, of.classifier, height=0.38, color="#2a6fb0", label="classifier")
        below.barh(at + 0.2, of.CLIP, height=0.38, color="#d9822b", label="CLIP")
        below.set(xlim=(0, 1), ylim=(len(shown) - 0.4, -0.6))
        below.set_xlabel("probability", fontsize=8)
        below.tick_params(axis="x", labelsize=7)
        below.set_yticks(at, names if column == 0 else [""] * len(shown), fontsize=7)
        below.grid(axis="y", visible=False)
    axes[1, 0].get_yticklabels()[shown.index(label)].set_fontweight("bold")
    legend = axes[1, 0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def prompt_similarity(similarity: np.ndarray, classes: list[str]) -> Figure:
    """Cosines between the classes' text embeddings as a matrix. Beyond 25 classes the numbers are left out."""
    few = len(classes) <= 25
    figure, axis = plt.subplots(figsize=(6.2, 5.2) if few else (8, 7))
    named = classes if few else False
    numbers = {"annot": len(classes) <= 12, "fmt": ".2f", "annot_kws": {"size": 7}}
    labels = {"xticklabels": named, "yticklabels": named, "cbar_kws": {"label": "cosine"}}
    sns.heatmap(similarity, ax=axis, cmap="viridis", vmax=1, square=True, **numbers, **labels)
    axis.tick_params(axis="x", rotation=45)
    axis.tick_params(axis="y", rotation=0)
    plt.setp(axis.get_xticklabels(), ha="right", rotation_mode="anchor")
    axis.set_title("Similarity of the class prompts")
    return figure


def training_curves(histories: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy by epoch on the validation split; the dot is the epoch that was chosen."""
    figure, panels = _panels(len(histories), 4.2, 3.2, "validation accuracy")
    labels = {"clean": ("clean_accuracy", GREEN), "PGD": ("pgd_accuracy", RED)}
    labels |= {"zero-shot": ("zero_shot_accuracy", "#d9822b")}
    for axis, (name, history) in zip(panels, histories.items(), strict=True):
        marker = "." if len(history) < 3 else None
        for text, (column, colour) in labels.items():
            if column not in history:
                continue
            axis.plot(history.epoch, history[column], color=colour, label=text, marker=marker)
            if "chosen" in history:
                best = history[history.chosen]
                axis.plot(best.epoch, best[column], "o", color=colour)
        axis.set(title=name, xlabel="epoch", ylim=(0, 1.02))
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        axis.legend(fontsize=8)
    panels[0].yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    return figure


def image_grid(images: np.ndarray, titles: list[str], columns: int = 10) -> Figure:
    """Images (N,H,W,3) with a title each."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.1 * columns, 1.3 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(title, fontsize=7)
    return figure
