"""How sure a difference between two ways of training is, when both the seeds and the test's rows are draws.

Scores are arrays x[seed, item]. A difference is taken between the same seeds (same rows in the same order) on the same
items: d[s, i] = δ + u_s + v_i + e_si, with u what a seed adds, v what an item adds, both at random.

Variance    Var(mean d) = σ_u²/S + σ_v²/I + σ_e²/(S I), parted by two-way analysis of variance, whose mean squares have
            the expectations  MS_seed: σ_e² + I σ_u²   MS_item: σ_e² + S σ_v²   MS_rest: σ_e²
            V_seed = max(MS_seed, MS_rest)/(S I), which holds σ_u² and σ_e². The seeds' means of right and wrong answers
            often coincide, MS_seed is then 0, and what single answers vary by still counts
            V_item = max(0, MS_item - MS_rest)/(S I), what items add beyond that
Interval    half-width² = t²(S-1) (V_seed + (m/(S I))²) + t²(I-1) (V_item + (m/I)²), m the mean of d: each part by its
            own t (Cochran 1964, "Approximate significance levels of the Behrens-Fisher test"), never narrower than the
            t-interval over the seeds. A bootstrap over three or five seeds is far too narrow: it knows no other seeds
            than these. Where all that was seen says the same no noise is seen, and yet there is some: (m/I)² is the
            variance of a mean of which one of I rows shows nothing and the others the same, (m/(S I))² that of which
            one answer does
Holm        1979: of several comparisons, the smallest p times their number, the next times one less, and so on

Shapes      x [seeds, items]; or [seeds], for a figure that a whole run has (a held-out loss). Of such figures
            V_seed = MS_seed/S, and (m/S)² where all seeds say the same
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

Array = NDArray[np.float64]

LEVELS = np.logspace(0, -12, 481)
"""Two-sided levels at which quantiles are tabulated."""
MOST_SEEDS = 100
"""More than so many further seeds are not counted out."""
ROUNDING = 1e-12
"""What is smaller than this share of the scores is the rounding of their arithmetic."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval. `low` and `high` are infinite where there is one seed or one row: its noise is not
    known. `items` is None for figures that whole runs have."""

    value: float
    low: float
    high: float
    seeds: int
    items: int | None


@dataclass(frozen=True)
class Difference:
    """Of one way less another. `p_value` is two-sided, 1 where it cannot be known; `items_low`, `items_high` bound the
    difference of these very runs, as if a seed changed nothing. `items` is None for figures that whole runs have."""

    value: float
    low: float
    high: float
    p_value: float
    seeds: int
    items: int | None
    seed_variance: float
    """V_seed times the seeds: what one seed adds."""
    item_variance: float
    """V_item: what more seeds do not take away; infinite for one row."""
    items_low: float
    items_high: float

    @property
    def is_finite(self) -> bool:
        """Whether every score was a number."""
        return math.isfinite(self.value)

    @property
    def is_nothing(self) -> bool:
        """Whether the two gave the same on every seed and item, and not on the average alone."""
        return self.value == self.seed_variance == self.item_variance == 0


@dataclass(frozen=True)
class Noise:
    """What the mean of a table of scores varies by; or of many tables, [tables] in place of each number."""

    seed: Any
    """V_seed, infinite for one seed."""
    item: Any
    """V_item, infinite for one item."""
    seeds: int
    items: int | None
    """None: figures that whole runs have."""

    def half_width(self, t_seeds: Any, t_items: Any, mean: Any = 0.0) -> Any:
        """By the quantiles of both parts; `mean` is m where the scores are differences."""
        if self.items is None:
            unseen = np.where(self.seed <= (ROUNDING * mean) ** 2, (mean / self.seeds) ** 2, 0.0)
            return np.sqrt(t_seeds**2 * (self.seed + unseen))
        of_seeds = t_seeds**2 * (self.seed + (mean / (self.seeds * self.items)) ** 2)
        return np.sqrt(of_seeds + t_items**2 * (self.item + (mean / self.items) ** 2))

    def reach(self, level: float, mean: Any = 0.0) -> Any:
        """Half-width of the interval that misses with probability `level`; infinite where a part is not known."""
        if self.seeds == 1 or self.items == 1:
            return np.full(np.shape(mean), math.inf)
        t_items = 0.0 if self.items is None else quantile(self.items - 1, level)
        return self.half_width(quantile(self.seeds - 1, level), t_items, mean)

    def p_value(self, mean: float) -> float:
        """The level at which the interval of a mean difference just reaches 0."""
        if self.seeds == 1 or self.items == 1 or mean == 0:
            return 1.0
        t_items = 0.0 if self.items is None else _quantiles(self.items - 1)
        halves = self.half_width(_quantiles(self.seeds - 1), t_items, mean)
        if halves[-1] <= abs(mean):
            return float(LEVELS[-1])
        return float(math.exp(np.interp(abs(mean), halves, np.log(LEVELS))))


def estimate(x: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The mean over seeds and items of one way of training."""
    scores = _scores(x)
    found = noise(scores) if scores.ndim == 2 else noise_of_runs(scores)
    half, mean = float(found.reach(1 - confidence)), float(scores.mean())
    return Estimate(mean, mean - half, mean + half, found.seeds, found.items)


def difference(ours: ArrayLike, theirs: ArrayLike, confidence: float = 0.95) -> Difference:
    """`ours` less `theirs`, the same seeds and the same items in the same order. Where a score is no finite number
    nothing is known: the value is NaN, the interval infinite, p is 1."""
    a, b = _scores(ours), _scores(theirs)
    if a.shape != b.shape:
        raise ValueError(f"paired scores need the same seeds and items: {a.shape} and {b.shape}")
    seeds, items = a.shape[0], a.shape[1] if a.ndim == 2 else None
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        unknown = (-math.inf, math.inf)
        return Difference(math.nan, *unknown, 1.0, seeds, items, math.inf, math.inf, *unknown)
    d = a - b
    mean = float(d.mean())
    if abs(mean) <= ROUNDING * abs(d).max():  # as much up as down
        mean = 0.0
    found = noise(d) if items is not None else noise_of_runs(d)
    half, within = float(found.reach(1 - confidence, mean)), math.inf
    if items is not None and items > 1:
        alone = float(d.mean(axis=0).var(ddof=1)) / items
        within = quantile(items - 1, 1 - confidence) * math.sqrt(alone + (mean / items) ** 2)
    return Difference(
        value=mean,
        low=mean - half,
        high=mean + half,
        p_value=found.p_value(mean),
        seeds=seeds,
        items=items,
        seed_variance=float(found.seed) * seeds,
        item_variance=float(found.item),
        items_low=mean - within,
        items_high=mean + within,
    )


def noise(d: Array) -> Noise:
    """Of the mean of d [..., seeds, items], parted into what seeds and what items add."""
    seeds, items = d.shape[-2:]
    mean, by_seed, by_item = d.mean(axis=(-2, -1)), d.mean(axis=-1), d.mean(axis=-2)
    unknown = np.full(mean.shape, math.inf)
    of_items = seeds * ((by_item - mean[..., None]) ** 2).sum(axis=-1) / (items - 1) if items > 1 else unknown
    if seeds == 1:
        return Noise(unknown, of_items / items, seeds, items)
    of_seeds = items * ((by_seed - mean[..., None]) ** 2).sum(axis=-1) / (seeds - 1)
    if items == 1:
        return Noise(of_seeds / seeds, unknown, seeds, items)
    rest = d - by_seed[..., None] - by_item[..., None, :] + mean[..., None, None]
    of_rest = (rest**2).sum(axis=(-2, -1)) / ((seeds - 1) * (items - 1))
    both = seeds * items
    return Noise(np.maximum(of_seeds, of_rest) / both, np.maximum(0.0, of_items - of_rest) / both, seeds, items)


def noise_of_runs(d: Array) -> Noise:
    """Of the mean of d [seeds], one figure for each run."""
    return Noise(d.var(ddof=1) / len(d) if len(d) > 1 else math.inf, 0.0, len(d), None)


def holm(p_values: Sequence[float]) -> list[float]:
    """The same p-values, adjusted for there being several. NaN is no evidence: it counts as 1."""
    known = [1.0 if math.isnan(p_value) else p_value for p_value in p_values]
    order = sorted(range(len(known)), key=lambda index: known[index])
    adjusted, highest = [1.0] * len(known), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(known) - rank) * known[index]))
        adjusted[index] = highest
    return adjusted


def seeds_needed(found: Difference, comparisons: int = 1, level: float = 0.05, power: float = 0.8) -> int | None:
    """Seeds in all with which a true difference as large as the one found would be told apart with `power`; None where
    no number up to `MOST_SEEDS` more would do, as when the items alone are too few. A rough figure: it takes the
    difference and the noise for what they were found to be."""
    if not found.is_finite or found.value == 0 or not math.isfinite(found.seed_variance):
        return None
    reach = quantile(10_000, 2 * (1 - power))
    for seeds in range(found.seeds + 1, found.seeds + MOST_SEEDS + 1):
        more = Noise(found.seed_variance / seeds, found.item_variance, seeds, found.items)
        half = float(more.reach(level / comparisons, found.value))
        if half + reach * math.sqrt(more.seed + more.item) <= abs(found.value):
            return seeds
    return None


@lru_cache(maxsize=4096)
def quantile(degrees: int, level: float) -> float:
    """Student's t: exceeded in absolute value with probability `level`."""
    return float(student.isf(level / 2, degrees))


def tail(t: float, degrees: float) -> float:
    """Student's t: the probability that |T| exceeds t."""
    return float(2 * student.sf(t, degrees))


def _scores(x: ArrayLike) -> Array:
    scores = np.asarray(x, dtype=float)
    if scores.ndim not in (1, 2) or not scores.size:
        raise ValueError(f"scores are a table of seeds by items, or one for each seed, not of shape {scores.shape}")
    return scores


@lru_cache(maxsize=256)
def _quantiles(degrees: int) -> Array:
    """t at every level of `LEVELS`."""
    return np.asarray(student.isf(LEVELS / 2, degrees), dtype=float)
