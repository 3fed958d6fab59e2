"""How sure a score is: intervals for one share of right answers, and tests for two measured on the same questions.

Wilson      Wilson 1927: centre and half-width of the score interval
McNemar     McNemar 1947, exact: under "no change" the questions that flipped are fair coins
bootstrap   Efron 1979: questions are drawn anew, before and after together
clustered   Davison and Hinkley 1997, section 3.8: whole conversations are drawn anew, as their turns hang together
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Share:
    """`right` of `total`, with the interval that holds the true share at the confidence asked for."""

    right: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.right / self.total if self.total else math.nan

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Change:
    """Before against after on the same questions. `low` and `high` bound `difference`; `p_value` is McNemar's."""

    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p_value: float


def wilson(right: int, total: int, confidence: float = 0.95) -> Share:
    if not 0 <= right <= total:
        raise ValueError(f"{right} right of {total}")
    if total == 0:
        return Share(0, 0, 0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, shrink = right / total, 1 + z * z / total
    centre = (share + z * z / (2 * total)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At the ends the bound is exact; rounding must not put the share outside its own interval.
    low = 0.0 if right == 0 else centre - half
    high = 1.0 if right == total else centre + half
    return Share(right, total, low, high)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value; 1.0 where nothing flipped."""
    flips = gained + lost
    tail = sum(math.comb(flips, k) for k in range(min(gained, lost) + 1)) / 2**flips
    return min(1.0, 2 * tail)


def paired_change(
    before: Sequence[float], after: Sequence[float], *, confidence: float = 0.95, num_draws: int = 2000, seed: int = 0
) -> Change:
    """Mean of after - before with a percentile bootstrap interval. Scores may be shares (F1) or 0 and 1."""
    if len(before) != len(after) or not before:
        raise ValueError(f"paired scores need the same questions: {len(before)} before, {len(after)} after")
    differences = [b - a for a, b in zip(before, after, strict=True)]
    size, random_ = len(differences), random.Random(seed)
    means = sorted(sum(random_.choices(differences, k=size)) / size for _ in range(num_draws))
    tail = (1 - confidence) / 2
    gained, lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return Change(
        difference=sum(differences) / size,
        low=means[int(tail * (num_draws - 1))],
        high=means[math.ceil((1 - tail) * (num_draws - 1))],
        gained=gained,
        lost=lost,
        p_value=mcnemar(gained, lost),
    )


def clustered(
    groups: Sequence[Sequence[float]], *, confidence: float = 0.95, num_draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of all values, whole `groups` drawn anew. Not narrower than Wilson's for as many
    independent answers as there are groups where all values are alike: nothing varies, and a bootstrap is blind."""
    sums, sizes, random_ = [sum(group) for group in groups], [len(group) for group in groups], random.Random(seed)
    values = {value for group in groups for value in group}
    if len(values) == 1 and values <= {0.0, 1.0}:
        share = wilson(len(groups) * round(values.pop()), len(groups), confidence)
        return share.low, share.high
    means = []
    for _ in range(num_draws):
        drawn = random_.choices(range(len(groups)), k=len(groups))
        means.append(sum(sums[i] for i in drawn) / sum(sizes[i] for i in drawn))
    means.sort()
    tail = (1 - confidence) / 2
    return means[int(tail * (num_draws - 1))], means[math.ceil((1 - tail) * (num_draws - 1))]
