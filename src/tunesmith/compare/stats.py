"""How sure a difference between two ways of training is, when both the seeds and the test's rows are draws.

Scores are arrays x[seed, item]. A difference is taken between the same seeds (same rows in the same order) on the same
items: d[s, i] = δ + u_s + v_i + e_si, with u what a seed adds, v what an item adds, both at random.

Variance    Var(mean d) = σ_u²/S + σ_v²/I + σ_e²/(S I), parted by two-way analysis of variance:
            V_seed = MS_seed/(S I), which holds σ_u² and σ_e², with S-1 degrees of freedom
            V_item = max(0, MS_item - MS_rest)/(S I), what items add beyond that, with I-1
Interval    half-width² = t²(S-1) V_seed + t²(I-1) V_item (Cochran 1964, "Approximate significance levels of the
            Behrens-Fisher test"): each part by its own t, never narrower than the t-interval over the seeds. A
            bootstrap over three or five seeds is far too narrow: it knows no other seeds than these.
Holm        1979: of several comparisons, the smallest p times their number, the next times one less, and so on

Shapes      x [seeds, items] or, for a figure that a whole run has (a loss), [seeds, 1]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

Array = NDArray[np.float64]

LEVELS = np.logspace(0, -12, 481)
"""Two-sided levels at which quantiles are tabulated."""
MOST_SEEDS = 100
"""More than so many further seeds are not counted out."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval. `low` and `high` are infinite where there is one seed: its noise is not known."""

    value: float
    low: float
    high: float
    seeds: int
    items: int


@dataclass(frozen=True)
class Difference:
    """Of one way less another. `p_value` is two-sided, 1 where it cannot be known; `items_low`, `items_high` bound the
    difference of these very runs, as if a seed changed nothing."""

    value: float
    low: float
    high: float
    p_value: float
    seeds: int
    items: int
    seed_variance: float
    """V_seed times the seeds: what one seed adds."""
    item_variance: float
    """V_item: what more seeds do not take away."""
    items_low: float
    items_high: float


def estimate(x: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The mean over seeds and items of one way of training."""
    scores = _table(x)
    seed, item = variances(scores)
    seeds, items = scores.shape
    half = _half_width(seed, item, seeds, items, 1 - confidence)
    mean = float(scores.mean())
    return Estimate(mean, mean - half, mean + half, seeds, items)


def difference(ours: ArrayLike, theirs: ArrayLike, confidence: float = 0.95) -> Difference:
    """`ours` less `theirs`, the same seeds and the same items in the same order."""
    a, b = _table(ours), _table(theirs)
    if a.shape != b.shape:
        raise ValueError(f"paired scores need the same seeds and items: {a.shape} and {b.shape}")
    d = a - b
    seeds, items = d.shape
    mean = float(d.mean())
    seed, item = variances(d)
    half = _half_width(seed, item, seeds, items, 1 - confidence)
    alone = math.sqrt(float(d.mean(axis=0).var(ddof=1)) / items) if items > 1 else math.inf
    within = quantile(items - 1, 1 - confidence) * alone if items > 1 else math.inf
    return Difference(
        value=mean,
        low=mean - half,
        high=mean + half,
        p_value=_p_value(mean, seed, item, seeds, items),
        seeds=seeds,
        items=items,
        seed_variance=seed * seeds,
        item_variance=item,
        items_low=mean - within,
        items_high=mean + within,
    )


def variances(d: Array) -> tuple[float, float]:
    """(V_seed, V_item) of the mean of `d` [seeds, items]; V_seed is infinite for one seed."""
    seeds, items = d.shape
    mean, by_seed, by_item = d.mean(), d.mean(axis=1), d.mean(axis=0)
    of_seeds = items * float(((by_seed - mean) ** 2).sum()) / (seeds - 1) if seeds > 1 else math.inf
    if items == 1:
        return of_seeds / seeds, 0.0
    of_items = seeds * float(((by_item - mean) ** 2).sum()) / (items - 1)
    if seeds == 1:
        return math.inf, of_items / items
    rest = d - by_seed[:, None] - by_item[None, :] + mean
    of_rest = float((rest**2).sum()) / ((seeds - 1) * (items - 1))
    return of_seeds / (seeds * items), max(0.0, of_items - of_rest) / (seeds * items)


def holm(p_values: Sequence[float]) -> list[float]:
    """The same p-values, adjusted for there being several."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def seeds_needed(found: Difference, comparisons: int = 1, level: float = 0.05, power: float = 0.8) -> int | None:
    """Seeds in all with which a true difference as large as the one found would be told apart with `power`; None where
    no number up to `MOST_SEEDS` more would do, as when the items alone are too few. A rough figure: it takes the
    difference and the noise for what they were found to be."""
    if found.value == 0 or not math.isfinite(found.seed_variance):
        return None
    reach = quantile(10_000, 2 * (1 - power))
    for seeds in range(found.seeds + 1, found.seeds + MOST_SEEDS + 1):
        seed = found.seed_variance / seeds
        half = _half_width(seed, found.item_variance, seeds, found.items, level / comparisons)
        if half + reach * math.sqrt(seed + found.item_variance) <= abs(found.value):
            return seeds
    return None


@lru_cache(maxsize=4096)
def quantile(degrees: int, level: float) -> float:
    """Student's t: exceeded in absolute value with probability `level`."""
    return float(student.isf(level / 2, degrees))


def tail(t: float, degrees: float) -> float:
    """Student's t: the probability that |T| exceeds t."""
    return float(2 * student.sf(t, degrees))


def _table(x: ArrayLike) -> Array:
    scores = np.asarray(x, dtype=float)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores are a table of seeds by items, not of shape {scores.shape}")
    return scores


def _half_width(seed: float, item: float, seeds: int, items: int, level: float) -> float:
    if seeds < 2:
        return math.inf
    square = quantile(seeds - 1, level) ** 2 * seed
    if items > 1:
        square += quantile(items - 1, level) ** 2 * item
    return math.sqrt(square)


def _p_value(mean: float, seed: float, item: float, seeds: int, items: int) -> float:
    """The level at which the interval just reaches 0."""
    if seeds < 2 or mean == 0:
        return 1.0
    square = _quantiles(seeds - 1) ** 2 * seed
    if items > 1:
        square = square + _quantiles(items - 1) ** 2 * item
    halves = np.sqrt(square)
    if halves[-1] <= abs(mean):
        return float(LEVELS[-1])
    return float(math.exp(np.interp(abs(mean), halves, np.log(LEVELS))))


@lru_cache(maxsize=256)
def _quantiles(degrees: int) -> Array:
    """t at every level of `LEVELS`."""
    return np.asarray(student.isf(LEVELS / 2, degrees), dtype=float)
