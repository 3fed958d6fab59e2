"""What the numbers say, in words; it may be that they do not say it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.compare.stats import MOST_SEEDS, Difference, quantile, seeds_needed

LEVEL = 0.05


@dataclass(frozen=True)
class Measure:
    """A figure that arms are compared by."""

    key: str
    title: str
    higher_is_better: bool
    points: bool
    """Shares of 1, told in points of a hundred; else as they are."""
    of_runs: bool = False
    """One figure for a whole run, and not one for each row of the test."""

    def told(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.points else f"{value:.4g}"

    def change(self, value: float) -> str:
        return f"{100 * value:+.1f} points" if self.points else f"{value:+.4f}"

    def interval(self, low: float, high: float, signed: bool = False) -> str:
        if not (math.isfinite(low) and math.isfinite(high)):
            return "[unknown]"
        sign = "+" if signed else ""
        if self.points:
            return f"[{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
        return f"[{low:{sign}.4f}, {high:{sign}.4f}]"


LOSS = Measure("loss", "test loss", higher_is_better=False, points=False)
HELD_OUT = Measure("held_out_loss", "held-out loss", higher_is_better=False, points=False, of_runs=True)
PAIRS = Measure("pairs", "pairs in order", higher_is_better=True, points=True)
REWARD = Measure("reward", "test reward", higher_is_better=True, points=False)


def score(name: str) -> Measure:
    return Measure(name, name, higher_is_better=True, points=True)


def verdict(ours: str, theirs: str, measure: Measure, found: Difference, adjusted: float, comparisons: int) -> str:
    """`ours` against `theirs`; `adjusted` is the p-value after Holm's correction for `comparisons`."""
    if not found.is_finite:
        return f"cannot tell {ours} from {theirs}: {what_it_takes(found, measure, comparisons)}"
    said = measure.change(found.value)
    if found.seeds < 2:
        rows = measure.interval(found.items_low, found.items_high, signed=True)
        return (
            f"cannot tell {ours} from {theirs}: one seed says nothing of the next. On these runs {said}, over the rows "
            f"alone {rows}; it takes at least two seeds more"
        )
    interval = measure.interval(found.low, found.high, signed=True)
    if adjusted <= LEVEL:
        better = (found.value > 0) == measure.higher_is_better
        return f"{ours} is {'better' if better else 'worse'} than {theirs}: {said} {interval}"
    alone = ", which among so many comparisons may be chance" if found.low > 0 or found.high < 0 else ""
    more = what_it_takes(found, measure, comparisons)
    return f"cannot tell {ours} from {theirs}: {said} {interval}{alone}; {more}"


def what_it_takes(found: Difference, measure: Measure, comparisons: int) -> str:
    """More seeds, more rows, or the word that there is hardly anything to be found."""
    if not found.is_finite:
        return f"a {measure.title} that is not a finite number can be compared with none"
    if found.is_nothing:
        return "the two gave the same on every seed"
    if found.items == 1:
        return "more seeds would not tell: the test has one row, which says nothing of others"
    if found.value == 0:
        return "their means are the same: each is better where the other is worse"
    seeds = seeds_needed(found, comparisons)
    if seeds is not None:
        more = seeds - found.seeds
        return f"if that were the difference, it would take about {more} more seed{'s' if more != 1 else ''}"
    if found.items is not None and (rows := _rows_needed(found, found.items, comparisons)) > found.items:
        return f"more seeds alone would not tell: the test has {found.items} rows, and it would take {rows:,} or more"
    return f"more than {MOST_SEEDS} more seeds would be needed: a difference that small hardly matters"


def _rows_needed(found: Difference, items: int, comparisons: int) -> int:
    """Rows with which the difference found would be told apart if seeds added nothing."""
    reach = quantile(items - 1, LEVEL / comparisons) + quantile(10_000, 0.4)
    return math.ceil(items * (reach * math.sqrt(found.item_variance) / found.value) ** 2)


def best(names: Sequence[str], means: Sequence[float], beats: dict[tuple[str, str], bool], measure: Measure) -> str:
    """The winner, only where it beats every other (all pairs corrected together); else who cannot be told apart."""
    if len(names) < 2:
        return ""
    sign = 1 if measure.higher_is_better else -1
    first, most = max(zip(names, means, strict=True), key=lambda pair: sign * pair[1])
    beside = [name for name in names if name != first and not beats.get((first, name), False)]
    if not beside:
        return f"Best by {measure.title}: {first}; it beats every other beyond the noise."
    tied = [name for name, mean in zip(names, means, strict=True) if mean == most]
    if len(tied) > 1:
        others = [name for name in beside if name not in tied]
        more = f", and {_and(others)} cannot be told from {first}" if others else ""
        return f"No winner by {measure.title}: {_and(tied)} have the same mean, the best{more}."
    return (
        f"No winner by {measure.title}: {first} has the best mean, and {_and(beside)} cannot be told from it "
        "(all pairs, corrected together)."
    )


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"
