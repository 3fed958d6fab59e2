"""The picture of a run: how the loss fell, and how fast it went."""

from __future__ import annotations

import io
import json
import statistics
from pathlib import Path
from typing import Any

from tunesmith.atomic import write_file

SHOWN = {"rewards/accuracies": "pairs in order", "reward": "reward"}
"""Metrics that get a panel of their own, with what it is called."""
INK, FAINT, BLUE, ORANGE, GREEN = "#22272e", "#8b949e", "#2f6fbb", "#d9730d", "#2b8a57"


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(steps, evaluations) of a metrics.jsonl, each in order."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return (
        [line for line in lines if line["event"] == "step"],
        [line for line in lines if line["event"] == "evaluation" and line["metrics"].get("loss") is not None],
    )


def smoothed(values: list[float], span: float) -> list[float]:
    """Mean over neighbours on both sides, weighted by a Gaussian of width `span` steps: no lag behind the curve."""
    import numpy as np

    if not values:
        return []
    width = max(span, 0.5)
    offsets = np.arange(-int(3 * width) - 1, int(3 * width) + 2)
    weights = np.exp(-0.5 * (offsets / width) ** 2)
    reach = len(offsets) // 2
    totals, counts = (np.convolve(row, weights)[reach : reach + len(values)] for row in (values, np.ones(len(values))))
    means: list[float] = (totals / counts).tolist()
    return means


def plot_run(metrics: Path, out: Path, title: str | None = None) -> None:
    """Draws `metrics` (a metrics.jsonl) into `out` (PNG): loss and held-out loss above, rate and speed below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps, evaluations = read_metrics(metrics)
    steps = [step for step in steps if step["loss"] is not None]
    shown = next((name for name in SHOWN if any(name in step.get("metrics", ()) for step in steps)), None)
    height, ratios = (7.0, [3.2, 1.6, 1]) if shown else (5.4, [3.2, 1])
    figure = Figure(figsize=(8, height), dpi=150, layout="constrained", facecolor="white")
    every = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    loss_axes, rate_axes = every[0], every[-1]
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=INK, labelsize=8.5)
        axes.grid(axis="y", color="#e6e9ed", linewidth=0.8)
        axes.set_axisbelow(True)
    _draw_loss(loss_axes, steps, evaluations, "loss" if shown else "loss per learned token")
    if shown:
        _draw_metric(every[1], steps, evaluations, shown)
    _draw_rates(rate_axes, steps)
    loss_axes.set_title(title or _name(metrics), loc="left", fontsize=11, color=INK, fontweight="bold")
    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_file(out, picture.getvalue())


def _name(metrics: Path) -> str:
    return metrics.absolute().parent.name


def _draw_metric(axes: Any, steps: list[dict[str, Any]], evaluations: list[dict[str, Any]], name: str) -> None:
    """What an objective is about, beside its loss."""
    known = [step for step in steps if name in step.get("metrics", ())]
    values = smoothed([step["metrics"][name] for step in known], len(known) / 30)
    axes.plot([step["step"] for step in known], values, color=BLUE, linewidth=1.9, label="training (smoothed)")
    held = [(line["step"], line["metrics"][name]) for line in evaluations if name in line["metrics"]]
    if held:
        axes.plot(*zip(*held, strict=True), color=ORANGE, marker="o", markersize=4.5, linewidth=1.4, label="held out")
    axes.set_ylabel(SHOWN[name], fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower right")


def _draw_loss(axes: Any, steps: list[dict[str, Any]], evaluations: list[dict[str, Any]], label_of_y: str) -> None:
    x, losses = [step["step"] for step in steps], [step["loss"] for step in steps]
    if len(steps) >= 15:
        axes.plot(x, losses, color=BLUE, alpha=0.28, linewidth=1)
        axes.plot(x, smoothed(losses, len(steps) / 50), color=BLUE, linewidth=1.9, label="training loss (smoothed)")
    elif steps:
        axes.plot(x, losses, color=BLUE, marker="o", markersize=3.5, linewidth=1.5, label="training loss")
    if evaluations:
        held_x, held = [line["step"] for line in evaluations], [line["metrics"]["loss"] for line in evaluations]
        best = min(range(len(held)), key=held.__getitem__)
        label = f"held-out loss, best {held[best]:.3f} at step {held_x[best]}"
        axes.plot(held_x, held, color=ORANGE, marker="o", markersize=4.5, linewidth=1.4, label=label)
        ring = {"markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.6}
        axes.plot([held_x[best]], [held[best]], "o", color=ORANGE, **ring)
    if len(losses) > 20:  # a first loss far above the rest would flatten the curve
        shown = losses[2:] + [line["metrics"]["loss"] for line in evaluations]
        low, high = min(shown), max(shown)
        axes.set_ylim(low - 0.06 * (high - low) - 1e-9, high + 0.08 * (high - low) + 1e-9)
    axes.set_ylabel(label_of_y, fontsize=9, color=INK)
    if steps or evaluations:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="upper right")


def _draw_rates(axes: Any, steps: list[dict[str, Any]]) -> None:
    x = [step["step"] for step in steps]
    rates = [step["learning_rate"] for step in steps]
    speeds = [step["tokens_per_second"] for step in steps]
    axes.plot(x, rates, color=FAINT, linewidth=1.5)
    axes.set_ylabel("learning rate", fontsize=9, color="#6b747e")
    axes.set_ylim(0, 1.15 * max(rates, default=1.0) or 1.0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    axes.yaxis.get_offset_text().set_fontsize(7.5)
    axes.set_xlabel("optimizer step", fontsize=9, color=INK)
    axes.xaxis.get_major_locator().set_params(integer=True)
    beside = axes.twinx()
    beside.plot(x, speeds, color=GREEN, linewidth=1.3)
    beside.set_ylim(0, 1.35 * statistics.median(speeds) if speeds and statistics.median(speeds) > 0 else 1)
    beside.set_ylabel("tokens / s", fontsize=9, color=GREEN)
    beside.tick_params(colors=GREEN, labelsize=8.5)
    beside.spines[["top", "left"]].set_visible(False)
    beside.spines["right"].set_color(FAINT)
