"""How often something comes up while training: every so many steps, or every so many passes over the rows.

A number counts steps. A text counts passes: "0.25 epochs" comes up after the step in which another quarter of a pass
is done, of ten steps a pass after steps 3, 5, 8 and 10. Fractions are exact, so no multiple drifts, and what is due
follows from the step alone.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from pydantic import PositiveInt

Every = PositiveInt | str
"""Steps, or a text that `passes` reads."""

_PASSES = re.compile(r"(\d+/[1-9]\d*|\d+(?:\.\d+)?|\.\d+)\s+epochs?", re.ASCII)


def passes(text: str) -> Fraction | None:
    """0.25 of "0.25 epochs", a third of "1/3 epochs"; None of any other text."""
    found = _PASSES.fullmatch(text)
    return (Fraction(found[1]) or None) if found else None


def is_due(every: int | str, step: int, steps_per_epoch: int) -> bool:
    """Whether what comes up `every` so often does after `step`."""
    apart = _steps_apart(every, steps_per_epoch)
    return step // apart > (step - 1) // apart


def first_due(every: int | str, steps_per_epoch: int) -> int:
    """The step after which it comes up first."""
    return math.ceil(_steps_apart(every, steps_per_epoch))


def _steps_apart(every: int | str, steps_per_epoch: int) -> int | Fraction:
    if isinstance(every, int):
        return every
    share = passes(every)
    if share is None:
        raise ValueError(f"{every!r} is not a number of passes")
    return share * steps_per_epoch
