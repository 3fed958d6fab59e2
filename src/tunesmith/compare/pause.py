"""Listeners that end a run early, so that a later one can go on with it: at a step, or where others were better."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tunesmith.events import Evaluated, Event, StepDone


@dataclass
class Pause:
    """Asks the loop to stop once `until` updates are done, or by the median rule of Golovin et al. 2017 (Vizier,
    section 3.2): where the lowest held-out loss so far is above the median of what `rivals` had by the same step.

    `rivals` are the losses of other runs by step; fewer than two have no median to speak of.
    """

    until: int
    rivals: Sequence[Mapping[int, float]] = ()
    _best: float = field(default=float("inf"), init=False)

    def __call__(self, event: Event) -> Literal["stop"] | None:
        if isinstance(event, StepDone) and event.step >= self.until:
            return "stop"
        if isinstance(event, Evaluated):
            self._best = min(self._best, event.metrics.get("loss", float("inf")))
            reached = [lowest for rival in self.rivals if (lowest := _lowest(rival, event.step)) is not None]
            if len(reached) >= 2 and self._best > statistics.median(reached):
                return "stop"
        return None


def _lowest(losses: Mapping[int, float], step: int) -> float | None:
    """The lowest loss up to `step` of a run that was evaluated then or later."""
    known = [loss for when, loss in losses.items() if when <= step]
    return min(known) if known and max(losses) >= step else None
