"""Figures, as functions of records, histories and images. One style for all."""

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

GREEN, ORANGE, RED, BLUE, AMBER = "#3b7f5c", "#d9a441", "#b5403a", "#2a6fb0", "#d9822b"
OUTCOMES = {"accepted, correct": GREEN, "rejected": ORANGE, "accepted, wrong": RED}
SCENARIO_COLOURS = {"clean": "#5b6472", "unaware": BLUE, "paper": "#7d5ba6", "joint": RED}
BARS = {"capsize": 2, "elinewidth": 0.6, "markersize": 4}
WITH_ZERO_AND_ONE = (-0.02, 1.02)


def style() -> None:
    """Set the matplotlib style of every figure."""
    changes = {"figure.dpi": 110, "savefig.dpi": 160, "figure.constrained_layout.use": True, "grid.alpha": 0.5}
    changes |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium"}
    changes |= {"text.parse_math": False, "font.family": ["sans-serif", *_wide_fonts()]}  # a class may be called "$x$"
    sns.set_theme(context="paper", style="whitegrid", font_scale=1.05, rc=changes)


def _wide_fonts() -> list[str]:
    """Fonts of this machine that have more scripts than matplotlib's own, which is tried first."""
    wanted = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Arial Unicode MS", "PingFang SC", "SimHei")
    return [name for name in wanted if name in font_manager.get_font_names()]


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


def _single(ylabel: str, **settings) -> tuple[Figure, Axes]:
    """A figure of one panel with fractions as y."""
    figure, axis = plt.subplots(figsize=(5.2, 3.6))
    axis.set(ylabel=ylabel, **settings)
    _percent(axis.yaxis)
    return figure, axis


def _panels(names: list[str], width: float, height: float, label: str, **shared) -> tuple[Figure, dict[str, Axes]]:
    """A figure and its panels by name: at most three in a row, y as a fraction with a label at the left edge."""
    columns = 2 if len(names) == 4 else min(len(names), 3)
    rows = -(-len(names) // columns)
    size = (max(width * columns, 6), height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True, **shared)
    panels = list(axes.flat)
    plt.setp(panels[len(names) :], visible=False)
    for axis in panels:
        axis.tick_params(labelbottom=True)  # sharing would leave them to the last row, which may not be full
    plt.setp(panels[: len(names) : columns], ylabel=label)
    _percent(panels[0].yaxis)
    return figure, dict(zip(names, panels, strict=False))


def _by_scenario(records: pd.DataFrame) -> dict[str, dict[str, pd.DataFrame]]:
    """Records by classifier and scenario."""
    groups = records.groupby("classifier", sort=False)
    return {name: dict(list(rows.groupby("scenario"))) for name, rows in groups}


def _shares(rows: pd.DataFrame, when: str) -> tuple[float, float, float]:
    correct, refused = (rows[f"{when}_decision"] == rows.label).mean(), rejected(rows, when).mean()
    return correct, refused, 1 - correct - refused


def scenarios(records: pd.DataFrame) -> Figure:
    """Shares of images by outcome, per classifier and scenario: accepted and correct, rejected, accepted and wrong."""
    by_name = _by_scenario(records)
    figure, panels = _panels(list(by_name), 4.6, 3.9, "share of all images")
    for name, axis in panels.items():
        rows = by_name[name]
        bars = {"clean,\nno shield": _shares(rows["no_shield"], "clean")}
        bars |= {"clean,\nshield": _shares(rows["unaware"], "clean")}
        # Denial is left out: a rejected image is its attacker's success.
        bars |= {TITLES[s]: _shares(rows[s], "attacked") for s in SCENARIOS if s in rows and s != "denial"}
        below = np.zeros(len(bars))
        for share, (label, colour) in zip(zip(*bars.values(), strict=True), OUTCOMES.items(), strict=True):
            axis.bar(list(bars), share, bottom=below, color=colour, label=label, width=0.72)
            below += np.array(share)
        axis.set(title=f"{name} (N = {len(rows['no_shield'])})", ylim=(0, 1))
        axis.grid(axis="x", visible=False)
        axis.tick_params(axis="x", labelsize=8, rotation=30)
    _legend(figure, *axis.get_legend_handles_labels())
    return figure


def rejection_curves(table: pd.DataFrame) -> Figure:
    """Robust accuracy against clean rejection, a curve per defence, from `stages.comparison.table`.

    At the same clean rejection the higher defence is better. Bars are 95 % Wilson intervals.
    """
    names, defences = list(dict.fromkeys(table.classifier)), list(dict.fromkeys(table.defence))
    figure, panels = _panels(names, 4.8, 4.2, "robust accuracy, worst case")
    for name, axis in panels.items():
        rows = table[table.classifier == name]
        for defence, colour, marker in zip(defences, sns.color_palette("colorblind"), "osD^vP*Xh", strict=False):
            curve = rows[rows.defence == defence].sort_values("rejection")
            error = _errors(curve.robust, curve.robust_low, curve.robust_high)
            look = {"color": colour, "marker": marker, "linewidth": 1.4, "label": defence, **BARS}
            axis.errorbar(curve.rejection, curve.robust, yerr=error, **look)
        axis.set(title=f"{name} (N = {rows.n.iloc[0]})", xlabel="clean rejection", ylim=WITH_ZERO_AND_ONE)
        axis.set_xlim(left=0)
        _percent(axis.xaxis)
    _legend(figure, *axis.get_legend_handles_labels())
    return figure


def studies(table: pd.DataFrame) -> Figure:
    """Robust accuracy and clean rejection at each value of each study, from `stages.studies.table`.

    A row of panels per study, a panel per classifier. Bars are 95 % Wilson intervals.
    """
    names, varied = list(dict.fromkeys(table.classifier)), list(dict.fromkeys(table.study))
    size = (max(4.6 * len(names), 6), 3.4 * len(varied))
    figure, axes = plt.subplots(len(varied), len(names), figsize=size, squeeze=False, sharey=True)
    robust = zip(dict.fromkeys(table.of), (RED, GREEN, BLUE), strict=False)
    series = [(f"robust, {of}", of, "robust_accuracy", colour, "o-") for of, colour in robust]
    series.append(("clean rejection, shield", "shield", "clean_rejection", ORANGE, "s--"))
    legend = {}
    for study, row in zip(varied, axes, strict=True):
        for name, axis in zip(names, row, strict=True):
            rows = table[(table.study == study) & (table.classifier == name)]
            for label, of, metric, colour, line in series:
                curve = rows[(rows.of == of) & (rows.metric == metric)]
                if len(curve):
                    error = _errors(curve.ratio, curve.low, curve.high)
                    look = {"color": colour, "fmt": line, **BARS}
                    legend[label] = axis.errorbar(range(len(curve)), curve.ratio, yerr=error, **look)
            values = list(dict.fromkeys(rows.value))
            axis.set_xticks(range(len(values)), values, rotation=20 if study == "prompts" else 0, fontsize=8)
            axis.set(title=f"{study}: {name}", ylim=WITH_ZERO_AND_ONE)
    _percent(axes[0, 0].yaxis)
    _legend(figure, legend.values(), legend.keys(), ncols=4, fontsize=8)
    return figure


def robustness_curves(curves: dict[str, pd.DataFrame]) -> Figure:
    """The robustness curve of each classifier's shield, with 95 % Wilson intervals (`portfolio.robustness_curve`)."""
    label = "alpha: rejecting within alpha \N{MULTIPLICATION SIGN} eps is an error"
    figure, axis = _single("images held", xlabel=label, ylim=(0, 1.02))
    for (name, curve), colour in zip(curves.items(), sns.color_palette("colorblind"), strict=False):
        axis.plot(curve.alpha, curve.value, "o-", color=colour, label=name, markersize=4)
        axis.fill_between(curve.alpha, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    axis.legend(fontsize=8)
    return figure


def gaps(records: pd.DataFrame, tolerance: float) -> Figure:
    """Cumulative distribution of the alignment gap: clean images, AutoAttack's, and those of the adaptive attacks.

    Images to the left of the tolerance are accepted.
    """
    by_name = _by_scenario(records)
    figure, panels = _panels(list(by_name), 4.6, 3.9, "share of images with a gap below", sharex=True)
    titles = {"clean": "clean", **TITLES, "unaware": "AutoAttack, unaware"}
    for name, axis in panels.items():
        rows = by_name[name]
        series = {"clean": rows["unaware"].gap_clean}
        series |= {s: rows[s].gap_attacked for s in ("unaware", "paper", "joint") if s in rows}
        for (label, values), dashes in zip(series.items(), ("-", "--", "-.", ":"), strict=False):
            look = {"color": SCENARIO_COLOURS[label], "linestyle": dashes, "linewidth": 1.8, "label": titles[label]}
            axis.ecdf(values.dropna(), **look)
        axis.axvline(tolerance, color="black", linewidth=0.8, label=f"tolerance {tolerance:g}: accepted to the left")
        # Linear up to the tolerance, where agreement (g = 0) and near misses lie; logarithmic beyond.
        axis.set_xscale("symlog", linthresh=tolerance or 0.001, linscale=0.5)
        axis.set(title=name, xlabel="alignment gap g (cosine)", ylim=(0, 1.02))
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
    figure, axis = _single("robust accuracy, unaware attacker", xlabel="clean rejection", ylim=WITH_ZERO_AND_ONE)
    axis.plot(rejection[1:], robust[1:], ".-", color=BLUE, markersize=4)
    axis.plot(rejection[0], robust[0], "o", color=RED, label=f"tolerance {tolerance:g}")
    _percent(axis.xaxis)
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
        images, scores, label: see `shields.Example`. Of more than 12 classes the true one and those of the highest
            scores are shown.
    """
    highest = pd.concat(list(scores.values()), axis=1).max(axis=1)
    highest[label] = np.inf
    shown = sorted(highest.nlargest(12).index)
    size, rows = (2.6 * len(images), 4.6), np.arange(len(shown))
    figure, axes = plt.subplots(2, len(images), figsize=size, height_ratios=(1, 1.15), squeeze=False)
    for (top, below), (title, pixels) in zip(axes.T, images.items(), strict=True):
        _show(top, pixels, title, 9)
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
    figure, panels = _panels(list(histories), 4.2, 3.2, "validation accuracy")
    curves = {"clean_accuracy": ("clean", GREEN), "pgd_accuracy": ("PGD", RED)}
    curves |= {"zero_shot_accuracy": ("zero-shot", AMBER)}
    for name, axis in panels.items():
        history = histories[name]
        marker = "." if len(history) < 3 else None
        for column, (text, colour) in curves.items():
            if column in history:
                axis.plot(history.epoch, history[column], color=colour, label=text, marker=marker)
            if column in history and "chosen" in history:
                best = history[history.chosen]
                axis.plot(best.epoch, best[column], "o", color=colour)
        axis.set(title=name, xlabel="epoch", ylim=(0, 1.02))
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        axis.legend(fontsize=8)
    return figure


def _show(axis: Axes, pixels: np.ndarray, title: str, fontsize: int) -> None:
    axis.imshow(pixels, interpolation="nearest")
    axis.set_title(title, fontsize=fontsize)
    axis.axis("off")


def image_grid(images: np.ndarray, titles: list[str], columns: int = 10) -> Figure:
    """Images (N,H,W,3) in [0,1], with a title each."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.1 * columns, 1.3 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        _show(axis, image, title, 7)
    return figure
