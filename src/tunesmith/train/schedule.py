"""Learning-rate schedules as functions of progress.

Progress is the share of the budget spent, in [0, 1]: steps done over steps planned, or minutes spent over given.
Warm-up rises linearly from 0 to 1 over its share of the budget, then the schedule falls from 1 to `floor`.
"""

from __future__ import annotations

import math


def constant(t: float, floor: float) -> float:
    return 1.0


def linear(t: float, floor: float) -> float:
    return 1.0 - (1.0 - floor) * t


def cosine(t: float, floor: float) -> float:
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * t))


SCHEDULES = {"constant": constant, "linear": linear, "cosine": cosine}


def multiplier(name: str, progress: float, step_share: float, warmup: float, floor: float) -> float:
    """What the learning rate is multiplied by in the step that starts at `progress` and takes `step_share` more.

    `warmup` is a share of the budget in [0, 1). The first step already learns, and so does the last.
    """
    if progress < warmup:
        return min(1.0, (progress + step_share) / warmup)
    return SCHEDULES[name](min(1.0, (progress - warmup) / max(1e-12, 1.0 - warmup)), floor)
