"""The picture of a classifier: which classes it takes for which, and whether its probabilities can be believed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.atomic import write_file
from tunesmith.score.classification import Bin, calibration_error, confusion, decided, reliability

INK, FAINT, BLUE, ORANGE = "#22272e", "#8b949e", "#2f6fbb", "#d9730d"
MOST_CLASSES = 20


def draw(
    out: Path,
    probabilities: np.ndarray,
    wanted: np.ndarray,
    labels: Sequence[str],
    *,
    several: bool,
    title: str,
    ordered: bool = False,
) -> None:
    """Left the confusion of classes (of several labels: precision and recall of each), right confidence against truth.

    probabilities [n, K], wanted [n, K] 0 or 1.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 4.4), dpi=150, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=[1.1, 1])
    if several:
        _each_label(left, probabilities, wanted, labels)
    else:
        _confusion(left, confusion(decided(probabilities, False, ordered=ordered), wanted), labels)
    _reliability(right, reliability(probabilities, wanted, several, ordered))
    figure.suptitle(
        f"{title}: {len(wanted):,} held-out rows", fontsize=11, color=INK, fontweight="bold", x=0.01, ha="left"
    )
    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_file(out, picture.getvalue())


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8.5)


def _shown(labels: Sequence[str]) -> list[str]:
    return [label if len(label) <= 18 else label[:17] + "…" for label in labels]


def _confusion(axes: Any, counts: np.ndarray, labels: Sequence[str]) -> None:
    most = np.argsort(-counts.sum(1), kind="stable")[:MOST_CLASSES]
    most.sort()
    shown = counts[np.ix_(most, most)]
    shares = shown / np.maximum(counts[most].sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    names = _shown([labels[index] for index in most])
    axes.set_xticks(
        range(len(most)), names, rotation=30 if len(most) > 3 else 0, ha="right" if len(most) > 3 else "center"
    )
    axes.set_yticks(range(len(most)), names)
    if len(most) <= 12:
        for i, j in np.ndindex(shown.shape):
            ink = "white" if shares[i, j] > 0.6 else INK
            axes.text(j, i, f"{shown[i, j]:,}\n{shares[i, j]:.0%}", ha="center", va="center", fontsize=8.5, color=ink)
    axes.tick_params(colors=INK, labelsize=8.5, length=0)
    axes.spines[:].set_visible(False)
    more = f" ({MOST_CLASSES} of {len(labels)} classes)" if len(labels) > MOST_CLASSES else ""
    axes.set_title(f"rows by class, and what they were taken for{more}", loc="left", fontsize=9.5, color=INK)
    axes.set_xlabel("taken for", fontsize=9, color=INK)
    axes.set_ylabel("is", fontsize=9, color=INK)


def _each_label(axes: Any, probabilities: np.ndarray, wanted: np.ndarray, labels: Sequence[str]) -> None:
    said, truth = probabilities >= 0.5, wanted.astype(bool)
    hits = (said & truth).sum(0)
    precision, recall = hits / np.maximum(said.sum(0), 1), hits / np.maximum(truth.sum(0), 1)
    most = np.argsort(-truth.sum(0), kind="stable")[:MOST_CLASSES]
    places = np.arange(len(most))
    axes.barh(places - 0.19, precision[most], 0.36, color=BLUE, label="precision")
    axes.barh(places + 0.19, recall[most], 0.36, color=ORANGE, label="recall")
    axes.set_yticks(
        places,
        [f"{name} ({truth[:, k].sum():,})" for name, k in zip(_shown([labels[k] for k in most]), most, strict=True)],
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    _plain(axes)
    axes.set_title("each label, with its rows", loc="left", fontsize=9.5, color=INK)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower right")


def _reliability(axes: Any, bins: Sequence[Bin]) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--", label="as sure as right")
    total = sum(one.count for one in bins)
    for one in bins:
        axes.plot([one.confidence] * 2, [one.confidence, one.right], color=ORANGE, linewidth=1.2, alpha=0.6)
    sizes = [20 + 260 * one.count / total for one in bins]
    axes.scatter([one.confidence for one in bins], [one.right for one in bins], s=sizes, color=BLUE, zorder=3)
    _plain(axes)
    axes.grid(color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlim(0, 1.03)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("how sure", fontsize=9, color=INK)
    axes.set_ylabel("how often right", fontsize=9, color=INK)
    axes.set_title(f"calibration error {calibration_error(bins):.3f}", loc="left", fontsize=9.5, color=INK)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="upper left")
