"""What the dated studies say of a method against LoRA: how large the difference is, and whether anyone will notice it.

A study's arm speaks of a method where it differs from the study's LoRA in the method alone. How large a difference is,
is told in shares of what tuning itself gained there: from the base as it was, asked plainly, to LoRA. Of several
results of one study the newest counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from page_parts import read

from tunesmith.adapters import METHODS
from tunesmith.train.settings import BUDGETS

BASELINE = "lora"
UNNOTICED, LITTLE = 0.02, 0.1
"""Shares of what tuning gained: below the first nobody will notice a difference, below the second it is a little."""
UNTUNED = "no tuning, zero-shot"
SAME, UNSURE, BETTER, WORSE = "nobody will notice", "cannot tell", "better", "worse"


@dataclass(frozen=True)
class Told:
    """One measure of one arm against LoRA. `gain`, `low` and `high` (its interval): above 0 is better."""

    method: str
    what: str
    """The method; of LoRA with other settings, these."""
    study: str
    date: str
    file: str
    budget: str
    """How long arms were trained, and at which learning rate."""
    measure: str
    points: bool
    """Whether the measure is a share of right answers, told in points."""
    gain: float
    low: float
    high: float
    differs: bool
    tuning: float | None
    """What LoRA gained over the untuned base; None: not measured, or nothing."""
    seeds: int
    time: float | None
    """Of its training, LoRA's there being 1."""

    @property
    def kind(self) -> str:
        if self.tuning is not None:
            ends = max(abs(self.low), abs(self.high)) / self.tuning
            if ends < UNNOTICED or (self.differs and abs(self.gain) / self.tuning < UNNOTICED):
                return SAME
        if not self.differs:
            return UNSURE
        return BETTER if self.gain > 0 else WORSE

    @property
    def words(self) -> str:
        """The size of the difference, what it is beside what tuning gained, and what it took."""
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        name = f"{self.study} ({self.date}; {self.budget}; {seeds}), by {self.measure}"
        ends = [self._size(end, signed=True) for end in (self.low, self.high)] if self._is_bounded else ["no interval"]
        size = f"{self._size(abs(self.gain))} {'better' if self.gain > 0 else 'worse'} [{', '.join(ends)}]"
        took = "" if self.time is None else f" Its training took {self.time:.2f} of LoRA's time there."
        return f"{name}: **{self._verdict}**, {size}{self._share}.{took}"

    @property
    def _verdict(self) -> str:
        if self.kind not in (BETTER, WORSE):
            return self.kind
        if self.tuning is None:
            return f"{self.kind}; what tuning itself gains was not measured there"
        return f"{'a little' if abs(self.gain) < LITTLE * self.tuning else 'clearly'} {self.kind}"

    @property
    def _share(self) -> str:
        """Of what tuning gained; where nothing can be told, of which share to which it may be."""
        if self.tuning is None or not self._is_bounded:
            return ""
        if self.kind == UNSURE:
            low, high = (_percent(end / self.tuning, "+") for end in (self.low, self.high))
            return f": anything from {low} to {high} of what tuning gained"
        share = abs(self.gain) / self.tuning
        return f", {share:.1f} times what tuning gained" if share >= 2 else f", {_percent(share)} of what tuning gained"

    @property
    def _is_bounded(self) -> bool:
        """One seed has no interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def _size(self, value: float, *, signed: bool = False) -> str:
        sign = "+" if signed else ""
        return f"{100 * value:{sign}.1f} points" if self.points else f"{value:{sign}.4f}"


def told() -> list[Told]:
    """Of the newest result of each study, oldest first."""
    return [one for file, study in newest(read("*-study-*.json")).items() for one in told_by(file, study)]


def newest(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The last made result of each study, by file."""
    last: dict[str, str] = {}
    for file, study in results.items():
        name = study["study"]
        if name not in last or study["made"] >= results[last[name]]["made"]:
            last[name] = file
    return {file: study for file, study in results.items() if file in last.values()}


def told_by(file: str, study: Mapping[str, Any]) -> list[Told]:
    """What a study (its results.json) says of arms that differ from its LoRA in the method, or in LoRA's settings,
    alone. Measures that know what tuning gained; where none does, the one that decides."""
    measures = {one["key"]: one for one in study["measures"]}
    found: dict[str, list[Told]] = {}
    for one in study["comparisons"]:
        arm, baseline = one["arm"], one["baseline"]
        what = speaks_of(study, arm, baseline)
        if what is None or one["value"] is None:
            continue
        measure = measures[one["measure"]]
        sign = 1 if measure["higher_is_better"] else -1
        ends = [bound if one[end] is None else one[end] for end, bound in (("low", -math.inf), ("high", math.inf))]
        low, high = sorted(sign * end for end in ends)
        own, theirs = (study["arms"][name].get("train_seconds") for name in (arm, baseline))
        found.setdefault(arm, []).append(
            Told(
                method=method_of(study, arm),
                what=what,
                study=study["study"],
                date=study["made"][:10],
                file=file,
                budget=budget(study),
                measure=measure["title"],
                points=measure["points"],
                gain=sign * one["value"],
                low=low,
                high=high,
                differs=bool(one["differs"]),
                tuning=tuning_gain(study, measure, baseline),
                seeds=one["seeds"],
                time=own / theirs if own and theirs else None,
            )
        )
    first = measures[study["primary"]]["title"]
    kept = []
    for ones in found.values():
        known = [one for one in ones if one.tuning is not None] or [one for one in ones if one.measure == first]
        kept += sorted(known, key=lambda one: one.measure != first)
    return kept


def budget(study: Mapping[str, Any]) -> str:
    train, rates = study["recipe"]["train"], study["settings"]["learning_rates"]
    unit = next(unit for unit in BUDGETS if train.get(unit) is not None)
    rows = f" of {train['batch_size']} rows" if train.get("batch_size") else ""
    rate = "one learning rate for all" if rates == "fixed" else f"each at its best of {len(rates)} learning rates"
    return f"{train[unit]} {unit}{rows}, {rate}"


def tuning_gain(study: Mapping[str, Any], measure: Mapping[str, Any], baseline: str) -> float | None:
    """By a measure, from the untuned base to LoRA; None: not known, in another unit, or nothing."""
    figures = [study["arms"].get(arm, {}).get("figures", {}).get(measure["key"]) for arm in (baseline, UNTUNED)]
    tuned, untuned = (None if figure is None else figure["value"] for figure in figures)
    if tuned is None or untuned is None or UNTUNED in study.get("apart", {}).get(measure["key"], ()):
        return None
    gain = float(tuned - untuned) * (1 if measure["higher_is_better"] else -1)
    return gain if gain > 0 else None


def speaks_of(study: Mapping[str, Any], arm: str, baseline: str) -> str | None:
    """The method of an arm that differs from LoRA in it alone; of LoRA with other settings of its own, what those are;
    None where an arm speaks of neither."""
    if not study["arms"][arm]["tuned"] or method_of(study, baseline) != BASELINE:
        return None
    differing = {
        key: values[arm] for key, values in study["differences"].items() if values.get(arm) != values.get(baseline)
    }
    if study["settings"]["learning_rates"] != "fixed":  # every arm tried the same ones, and has its best
        differing.pop("train.learning_rate", None)
    if not all(key.startswith("adapter.") for key in differing):
        return None
    method = method_of(study, arm)
    if method == BASELINE:
        return ", ".join(f"{key.removeprefix('adapter.')} {_plainly(value)}" for key, value in differing.items())
    own = {key.removeprefix("adapter."): value for key, value in differing.items() if key != "adapter.method"}
    return method if all(is_the_methods(method, key, value) for key, value in own.items()) else None


def _percent(share: float, sign: str = "") -> str:
    return f"{100 * share:{sign}.{1 if abs(share) < 0.1 else 0}f} %"


def _plainly(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else json.dumps(value)


def method_of(study: Mapping[str, Any], arm: str) -> str:
    everywhere = study["recipe"].get("adapter", {}).get("method", BASELINE)
    found: str = study["differences"].get("adapter.method", {}).get(arm, everywhere)
    return found


def is_the_methods(method: str, key: str, value: Any) -> bool:
    """Whether a setting is otherwise than LoRA's because the method is: one of the two has no such setting, or the
    value is the method's default, which is another than LoRA's."""
    own, theirs = defaults(method), defaults(BASELINE)
    if key not in own or key not in theirs:
        return True
    return value == own[key] != theirs[key]


@cache
def defaults(method: str) -> dict[str, Any]:
    settings: dict[str, Any] = METHODS[method].Settings().model_dump(mode="json")  # type: ignore[attr-defined]
    return settings


def deciding(ones: Iterable[Told]) -> list[Told]:
    """Of each study and arm the measure that decides."""
    first: dict[tuple[str, str], Told] = {}
    for one in ones:
        first.setdefault((one.study, one.what), one)
    return list(first.values())
