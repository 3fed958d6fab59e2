"""How a budget is shared out: successive halving, in which whoever goes on continues its own run.

Jamieson & Talwalkar 2016, arXiv:1502.07943. All trials are trained to a first step; the better half is trained to twice
that step, and so on, until two are left. No step is done twice: a trial that goes on is resumed, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rung:
    """So many trials are trained until `step` updates are done."""

    trials: int
    step: int


def plan(trials: int, budget: float, num_steps: int) -> list[Rung]:
    """The rungs of `trials` trials within `budget` runs of `num_steps` steps; empty where not even a step is left for
    each. The last rung is no further than a whole run."""
    counts = [trials]
    while counts[-1] > 2:
        counts.append(math.ceil(counts[-1] / 2))
    cost = counts[0] + sum(count * 2.0 ** (index - 1) for index, count in enumerate(counts) if index)
    first = min(budget * num_steps / cost, num_steps / 2 ** (len(counts) - 1))
    steps = [int(first * 2**index + 1e-9) for index in range(len(counts))]
    return [Rung(count, step) for count, step in zip(counts, steps, strict=True)] if steps[0] >= 1 else []


def steps_of(rungs: list[Rung]) -> int:
    """Updates in all."""
    before, total = 0, 0
    for rung in rungs:
        total += rung.trials * (rung.step - before)
        before = rung.step
    return total
