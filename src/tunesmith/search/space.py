"""What is searched: settings, each with its choices or its range, and which values are tried next.

The proposals are optuna's (the tree-structured Parzen estimator of Bergstra et al. 2011); a list of choices that can be
tried in whole is tried in whole.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import model_validator

from tunesmith.errors import MachineError
from tunesmith.settings import Contradiction, Settings


class Range(Settings):
    """Every number from `low` to `high`; whole ones where both are."""

    low: int | float
    """The least value."""
    high: int | float
    """The largest value."""
    log: bool = False
    """Tried evenly by magnitude: 1e-4 to 1e-3 as often as 1e-3 to 1e-2."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low >= self.high:
            raise Contradiction("high", f"is {self.high}, and low {self.low}", "give the smaller one as low")
        if self.log and self.low <= 0:
            raise Contradiction("low", f"is {self.low}, and log has no place for it", "give a number above 0")
        return self

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


MOST_LISTED = 64
"""Combinations that are all tried as recipes before the first is trained."""

Space = Mapping[str, tuple[Any, ...] | Range]
Values = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """A trial as the sampler sees it: its values and its loss, infinite where it failed."""

    values: Values
    loss: float


def count(space: Space) -> int | None:
    """How many combinations there are; None: a range is among them."""
    total = 1
    for domain in space.values():
        if isinstance(domain, Range):
            return None
        total *= len(domain)
    return total


def holds(space: Space, values: Mapping[str, Any]) -> bool:
    """Whether these values are in the space."""
    for key, domain in space.items():
        value = values.get(key)
        if isinstance(domain, Range):
            if not isinstance(value, int | float) or not domain.low <= value <= domain.high:
                return False
        elif value not in domain:
            return False
    return True


def ends(space: Space) -> list[tuple[str, Any, Values]]:
    """(setting, value, that value among the first of the others) of every choice and both ends of every range: what can
    be refused is among them."""
    first = {key: domain.low if isinstance(domain, Range) else domain[0] for key, domain in space.items()}
    found = []
    for key, domain in space.items():
        shown = (domain.low, domain.high) if isinstance(domain, Range) else domain
        found += [(key, value, first | {key: value}) for value in shown]
    return found


def grid(space: Space) -> list[Values] | None:
    """Every combination; None where there are more than `MOST_LISTED`, or no end of them."""
    total = count(space)
    if total is None or total > MOST_LISTED:
        return None
    names = list(space)
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*space.values())]  # type: ignore[arg-type]


def propose(
    space: Space, seen: Sequence[Seen], *, seed: int, trials: int, possible: Callable[[Values], bool] = lambda _: True
) -> Values | None:
    """The values of the next of `trials` trials after those that are seen; None: every combination was tried. The same
    for the same past. No value may be wrong alone; which of them cannot be together, `possible` says."""
    tried = [one.values for one in seen]
    total = count(space)
    listed = grid(space) if total is not None else None
    if listed is not None:
        listed = [values for values in listed if possible(values)]
        if len(listed) <= trials:
            return next((values for values in listed if values not in tried), None)
    elif total is not None and total <= trials:
        every = (dict(zip(space, values, strict=True)) for values in itertools.product(*space.values()))  # type: ignore[arg-type]
        return next((values for values in every if values not in tried and possible(values)), None)
    for attempt in range(100):
        values = _ask(space, seen, seed + 7919 * len(seen) + 104729 * attempt, trials)
        if values not in tried and possible(values):
            return values
    return None


def at_an_end(space: Space, values: Mapping[str, Any]) -> list[str]:
    """The settings whose value is the least or the largest that could be tried: better ones may lie beyond."""
    found = []
    for key, domain in space.items():
        if isinstance(domain, Range):
            low, high = domain.low, domain.high
            share = (values[key] - low) / (high - low)
            if domain.log:
                share = math.log(values[key] / low) / math.log(high / low)
            if not 0.02 < share < 0.98:
                found.append(key)
        elif len(domain) > 2 and all(map(_is_number, domain)) and values[key] in (min(domain), max(domain)):
            found.append(key)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def need_optuna() -> Any:
    """optuna, or what to install."""
    try:
        import optuna
    except ImportError:
        raise MachineError(
            "searching a range needs optuna, which is not installed", fix="pip install 'tunesmith[search]'"
        ) from None
    optuna.logging.set_verbosity(logging.WARNING)
    return optuna


def _ask(space: Space, seen: Sequence[Seen], seed: int, trials: int) -> Values:
    optuna = need_optuna()
    kinds = optuna.distributions
    of: dict[str, Any] = {}
    for key, domain in space.items():
        if not isinstance(domain, Range):
            of[key] = kinds.CategoricalDistribution(range(len(domain)))
        elif domain.is_whole:
            of[key] = kinds.IntDistribution(domain.low, domain.high, log=domain.log)
        else:
            of[key] = kinds.FloatDistribution(float(domain.low), float(domain.high), log=domain.log)
    sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=max(4, trials // 2), multivariate=True)
    study = optuna.create_study(sampler=sampler)
    for one in seen:
        if math.isfinite(one.loss) and holds(space, one.values):
            raw = {key: _index(space[key], one.values[key]) for key in space}
            study.add_trial(optuna.trial.create_trial(params=raw, distributions=of, value=one.loss))
    asked = study.ask(of)
    return {key: _value(space[key], asked.params[key]) for key in space}


def _index(domain: tuple[Any, ...] | Range, value: Any) -> Any:
    return value if isinstance(domain, Range) else domain.index(value)


def _value(domain: tuple[Any, ...] | Range, raw: Any) -> Any:
    """Numbers with three digits, so that a recipe can be read."""
    if not isinstance(domain, Range):
        return domain[raw]
    return raw if domain.is_whole else min(max(float(f"{raw:.3g}"), domain.low), domain.high)
