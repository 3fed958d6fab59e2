"""Successive halving over a grid of learning rates: the same trials, of the same budgets, for every arm.

Jamieson & Talwalkar 2016, arXiv:1502.07943. Of n rates the better half goes on to a round of twice the budget, until
one is left: 4 rates are 4 trials of a quarter of the budget, then 2 of half of it. A trial is a run of its own with a
whole schedule, so that rates are judged as they will be used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Try = Callable[[float, int, float], float]
"""(learning rate, round, share of the budget) -> held-out loss; infinite where the trial failed."""


@dataclass(frozen=True)
class Trial:
    learning_rate: float
    round: int
    share: float
    loss: float


@dataclass(frozen=True)
class Chosen:
    """The rate that was found, all trials, and whether it lies at an end of the grid."""

    learning_rate: float
    trials: tuple[Trial, ...]
    at_the_edge: bool


def rounds(count: int) -> list[tuple[int, float]]:
    """(trials, share of the budget) of each round for a grid of `count` rates."""
    total = max(1, math.ceil(math.log2(count)))
    plan, left = [], count
    for number in range(total):
        plan.append((left, 0.5 ** (total - number)))
        left = math.ceil(left / 2)
    return plan


def cost(count: int) -> float:
    """Budgets that the trials of one arm take."""
    return sum(trials * share for trials, share in rounds(count))


def halve(rates: Sequence[float], attempt: Try) -> Chosen | None:
    """The best rate; None where every trial of a round failed."""
    left, trials = sorted(set(rates)), list[Trial]()
    for number, (_, share) in enumerate(rounds(len(left))):
        made = [Trial(rate, number, share, attempt(rate, number, share)) for rate in left]
        trials += made
        best = sorted((trial for trial in made if math.isfinite(trial.loss)), key=lambda trial: trial.loss)
        if not best:
            return None
        left = sorted(trial.learning_rate for trial in best[: math.ceil(len(left) / 2)])
    rate = left[0] if len(left) == 1 else best[0].learning_rate
    return Chosen(rate, tuple(trials), rate in (min(rates), max(rates)))
