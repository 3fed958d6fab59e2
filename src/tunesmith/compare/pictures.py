"""A study's pictures, as PNG: figures with intervals, loss curves, quality against cost, rows won and lost."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.compare.verdict import LOSS, PAIRS, REWARD, Measure
from tunesmith.plot import FAINT, INK, read_metrics, smoothed

COLOURS = ("#2f6fbb", "#d9730d", "#2b8a57", "#8e4ec6", "#c2255c", "#0c8599", "#846358", "#b08900", "#5c6b7a", "#364fc7")
GREY = "#9aa4ae"
AXES = (("train_seconds", "seconds of training", 1.0), ("peak_memory_bytes", "peak memory while training, GB", 1e-9))


def draw(found: Mapping[str, Any], folder: Path) -> dict[str, bytes]:
    """Name -> PNG, of the pictures for which there is something to draw; `folder` is the study's."""
    pictures: dict[str, Callable[[Mapping[str, Any]], bytes | None]] = {
        "figures": _figures,
        "curves": lambda found: _curves(found, folder),
        "cost": _cost,
        "rows": _rows,
    }
    made = {name: draw(found) for name, draw in pictures.items()}
    return {name: picture for name, picture in made.items() if picture is not None}


def primary(found: Mapping[str, Any]) -> Measure:
    return next(Measure(**one) for one in found["measures"] if one["key"] == found["primary"])


def colours(found: Mapping[str, Any]) -> dict[str, str]:
    """The same colour for an arm in every picture; the base without tuning is grey."""
    tuned = [name for name, row in found["arms"].items() if row["tuned"]]
    own = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(tuned)}
    return {name: own.get(name, GREY) for name in found["arms"]}


def _figures(found: Mapping[str, Any]) -> bytes | None:
    """One panel for each measure on the test: mean, interval, and every seed as a dot."""
    measures = [Measure(**one) for one in found["measures"]]
    shown = [m for m in measures if any(m.key in row["figures"] for row in found["arms"].values())]
    if not shown:
        return None
    names = list(found["arms"])
    height = 1.1 + 0.42 * len(names)
    figure, panels = _panels(len(shown), min(4.2 * len(shown) + 1.2, 13.5), height, sharey=True)
    own = colours(found)
    for axes, measure in zip(panels, shown, strict=True):
        for place, name in enumerate(names):
            figures = found["arms"][name]["figures"].get(measure.key)
            if figures is None:
                continue
            scale = 100 if measure.points else 1
            seeds = [scale * value for value in figures["by_seed"].values()]
            axes.plot(
                seeds, [place + 0.22] * len(seeds), "o", color=own[name], alpha=0.35, markersize=5, markeredgewidth=0
            )
            if figures["low"] is not None and figures["high"] is not None:  # one seed has no interval
                interval = [scale * figures["low"], scale * figures["high"]]
                axes.plot(interval, [place, place], color=own[name], linewidth=2)
            axes.plot(
                [scale * figures["value"]], [place], "D", color=own[name], markersize=6.5, markeredgecolor="white"
            )
        _clip(axes, found, measure)
        better = "more is better" if measure.higher_is_better else "less is better"
        axes.set_title(f"{_titled(measure)}  ({better})", loc="left", fontsize=9, color=INK)
        axes.grid(axis="x", color="#e6e9ed", linewidth=0.8)
        axes.set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return _png(figure)


def _titled(measure: Measure) -> str:
    return measure.title + (", %" if measure.points else "")


def _clip(axes: Any, found: Mapping[str, Any], measure: Measure) -> None:
    """An interval over two seeds may be wider than anything, and the base's loss far from all that was tuned: the means
    and seeds of the tuned arms decide what is shown; what lies beyond is written at the edge."""
    scale = 100 if measure.points else 1
    tuned = [row for row in found["arms"].values() if row["tuned"]] or list(found["arms"].values())
    values = [scale * value for row in tuned for value in _seeds(row, measure)]
    if not values:
        return
    low, high = min(values), max(values)
    room = max(0.35 * (high - low), 4.0 if measure.points else 0.02 * abs(high) + 1e-6)
    low, high = low - room, high + room
    if measure.points:
        low, high = max(low, -2.0), min(high, 102.0)
    axes.set_xlim(low, high)
    for place, row in enumerate(found["arms"].values()):
        figures = row["figures"].get(measure.key)
        value = None if figures is None else scale * figures["value"]
        if value is None or low <= value <= high:
            continue
        right = value > high
        told = f"{value:.4g} {chr(0x2192)}" if right else f"{chr(0x2190)} {value:.4g}"
        axes.text(
            high if right else low, place, told, ha="right" if right else "left", va="center", fontsize=8.5, color=GREY
        )


def _seeds(row: Mapping[str, Any], measure: Measure) -> list[float]:
    return list(row["figures"].get(measure.key, {}).get("by_seed", {}).values())


def _curves(found: Mapping[str, Any], folder: Path) -> bytes | None:
    """Training loss (smoothed) and held-out loss; a thin line for each seed, a thick one for their mean. Of arms whose
    losses are not of one thing, what they have in common."""
    own, (key, title) = colours(found), _drawn(found)
    curves = {
        name: [read_metrics(folder / run / "metrics.jsonl") for run in row["folders"].values()]
        for name, row in found["arms"].items()
        if row["tuned"]
    }
    if not any(steps for runs in curves.values() for steps, _ in runs):
        return None
    figure, (left, right) = _panels(2, 11, 4.2)
    for name, runs in curves.items():
        training, held = [], []
        for steps, evaluations in runs:
            at, values = _values(steps, key)
            training.append((at, smoothed(values, len(values) / 40)))
            held.append(_values(evaluations, key))
        for axes, lines in ((left, training), (right, held)):
            lines = [(x, y) for x, y in lines if x]
            if len(lines) > 1:
                for x, y in lines:
                    axes.plot(x, y, color=own[name], linewidth=0.8, alpha=0.35)
            if lines:
                x, y = _mean_curve(lines)
                marker = "o" if len(x) < 15 else None
                axes.plot(x, y, color=own[name], linewidth=1.9, marker=marker, markersize=3.5, label=name)
    for axes, words in ((left, f"training: {title} (smoothed)"), (right, f"held out: {title}")):
        axes.set_title(words, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("optimizer step", fontsize=9, color=INK)
        axes.grid(axis="y", color="#e6e9ed", linewidth=0.8)
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = max((axes.get_legend_handles_labels() for axes in (left, right)), key=lambda told: len(told[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False, fontsize=9)
    return _png(figure)


def _drawn(found: Mapping[str, Any]) -> tuple[str, str]:
    """(the metric of a run that is drawn step by step, its title)."""
    keys = [measure["key"] for measure in found["measures"]]
    if REWARD.key in keys:
        return "reward", "reward"
    if PAIRS.key in keys and (LOSS.key not in keys or LOSS.key in found["apart"]):
        return "rewards/accuracies", "share of pairs in order"
    return "loss", "loss"


def _values(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """(steps, values of a metric at them); steps that have none are left out."""
    told = [(line["step"], {**line.get("metrics", {}), **line}.get(key)) for line in lines]
    known = [(step, value) for step, value in told if value is not None]
    return [step for step, _ in known], [value for _, value in known]


def _mean_curve(lines: Sequence[tuple[list[int], list[float]]]) -> tuple[list[int], list[float]]:
    """Over the steps that every seed has."""
    known = [dict(zip(x, y, strict=True)) for x, y in lines]
    steps = sorted(set.intersection(*(set(one) for one in known)))
    if not steps:
        return lines[0]
    return steps, [sum(one[step] for one in known) / len(known) for step in steps]


def _cost(found: Mapping[str, Any]) -> bytes | None:
    """Quality against seconds of training and against peak memory; the Pareto front ringed and joined."""
    measure, own = primary(found), colours(found)
    apart = found["apart"].get(measure.key, [])  # their figures are in another unit
    rows = {n: r for n, r in found["arms"].items() if r["tuned"] and measure.key in r["figures"] and n not in apart}
    if not rows:
        return None
    figure, panels = _panels(2, 11, 4.4)
    scale = 100 if measure.points else 1
    for axes, (key, label, unit) in zip(panels, AXES, strict=True):
        points = {
            name: (unit * row[key], scale * row["figures"][measure.key]["value"])
            for name, row in rows.items()
            if row[key] is not None
        }
        front = pareto(points, measure.higher_is_better)
        axes.plot(
            *zip(*[points[name] for name in front], strict=True), color=FAINT, linewidth=1, linestyle="--", zorder=1
        )
        for name, (x, y) in points.items():
            figures = rows[name]["figures"][measure.key]
            if len(figures["by_seed"]) > 1:
                seeds = [scale * value for value in figures["by_seed"].values()]
                axes.plot([x, x], [min(seeds), max(seeds)], color=own[name], linewidth=1.4, alpha=0.5, zorder=2)
            axes.plot([x], [y], "o", color=own[name], markersize=8, label=name, zorder=3)
            if name in front:
                axes.plot([x], [y], "o", markersize=14, markerfacecolor="none", markeredgecolor=INK, zorder=3)
        _room(axes, points)
        axes.set_xlabel(label, fontsize=9, color=INK)
        axes.set_ylabel(_titled(measure), fontsize=9, color=INK)
        axes.grid(color="#e6e9ed", linewidth=0.8)
        if not measure.higher_is_better:
            axes.invert_yaxis()
    panels[0].set_title(
        "better is up and to the left; ringed: by the means, nothing is both cheaper and better", loc="left", fontsize=9
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False, fontsize=9)
    return _png(figure)


def _room(axes: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """From zero where costs are far apart; else so that near ones can be told apart."""
    costs = [x for x, _ in points.values()]
    low, high = min(costs), max(costs)
    room = max(0.25 * (high - low), 0.05 * high)
    axes.set_xlim(0 if low < 0.5 * high else low - room, high + room)


def pareto(points: Mapping[str, tuple[float, float]], higher_is_better: bool) -> list[str]:
    """Names for which nothing is both cheaper and better, from the cheapest on."""
    sign = 1 if higher_is_better else -1
    front, best = [], float("-inf")
    for name in sorted(points, key=lambda name: (points[name][0], -sign * points[name][1])):
        if sign * points[name][1] > best:
            front.append(name)
            best = sign * points[name][1]
    return front


def _rows(found: Mapping[str, Any]) -> bytes | None:
    """Rows of the test that are better and worse than the baseline's, by the mean over the seeds."""
    measure = primary(found)
    told = [c for c in found["comparisons"] if c["measure"] == measure.key and c["rows"]]
    if not told:
        return None
    figure, (axes,) = _panels(1, 8.5, 1.3 + 0.42 * len(told))
    for place, one in enumerate(told):
        won, lost = one["rows"]["won"], one["rows"]["lost"]
        axes.barh(place, won, color="#2b8a57", height=0.6)
        axes.barh(place, -lost, color="#c0392b", height=0.6)
        axes.annotate(str(won), (won, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)
        axes.annotate(
            str(lost),
            (-lost, place),
            (-4, 0),
            textcoords="offset points",
            va="center",
            ha="right",
            fontsize=8.5,
            color=INK,
        )
    most = max(max(one["rows"]["won"], one["rows"]["lost"]) for one in told) or 1
    axes.set_xlim(-1.15 * most, 1.15 * most)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(told)), [one["arm"] for one in told])
    axes.set_ylim(len(told) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    title = f"{'rows' if measure.key != LOSS.key else 'rows of lower and higher loss'}: worse (left) and better (right)"
    axes.set_title(f"{title} than {found['baseline']}, by {measure.title}", loc="left", fontsize=9.5, color=INK)
    return _png(figure)


def _panels(count: int, width: float, height: float, sharey: bool = False) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    panels = figure.subplots(1, count, squeeze=False, sharey=sharey)[0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=INK, labelsize=8.5)
        axes.set_axisbelow(True)
    return figure, panels


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
