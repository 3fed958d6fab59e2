"""A share of many cases in `make test`, all of them in `make test-all`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def thinned(cases: Iterable[Any], quick: Callable[[Any], bool]) -> list[Any]:
    """`cases` for parametrize, each a value or a tuple of values; those that are not `quick` are marked slow."""
    marked = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        marked.append(pytest.param(*values, marks=() if quick(case) else pytest.mark.slow))
    return marked


def in_turn(first: Iterable[Any], second: Iterable[Any], *, of: int = 1) -> Callable[[tuple[Any, ...]], bool]:
    """Quick: for each value of `first` every `of`-th of `second` (1: one alone), begun one further each time, so that
    all of both are met."""
    others = list(second)
    step = len(others) if of == 1 else of
    place = {value: number for number, value in enumerate(first)}
    index = {value: number for number, value in enumerate(others)}
    return lambda case: (index[case[1]] - place[case[0]]) % step == 0
