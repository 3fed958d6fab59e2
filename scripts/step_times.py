"""What a step of a method takes beside LoRA's: rounds in which both took one, and what these tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from typing import Any

from page_parts import read

BASELINE = "lora"
AIM = 1.08
"""Times LoRA's step that a method may take and still count as no dearer."""
SURE = 0.95


@dataclass(frozen=True)
class Time:
    """Of one method's step, LoRA's being 1: the median of its rounds, and where that lies with 95 %. Few rounds: the
    least and the most of them."""

    ratio: float
    low: float
    high: float
    rounds: int
    files: tuple[str, ...]

    @property
    def in_short(self) -> str:
        return f"{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f})"

    @property
    def words(self) -> str:
        return f"{self.ratio:.2f} of LoRA's ({self.low:.2f} to {self.high:.2f}; {self.rounds} rounds)"

    @property
    def is_dearer(self) -> bool | None:
        """None: cannot be told."""
        return True if self.low > AIM else False if self.high <= AIM else None


def step_times(results: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Time]:
    """Of each method, by all rounds of the last day on which it was measured."""
    results = read(f"*-methods-{BASELINE}*.json") if results is None else results
    rounds: dict[str, dict[str, list[float]]] = {}
    for file, result in results.items():
        theirs = result["contenders"][BASELINE]["seconds"]
        for name, one in result["contenders"].items():
            if name != BASELINE:
                ratios = [own / other for own, other in zip(one["seconds"], theirs, strict=True)]
                rounds.setdefault(name, {})[file] = ratios
    return {name: _of_the_last_day(files) for name, files in rounds.items()}


def _of_the_last_day(files: Mapping[str, Sequence[float]]) -> Time:
    last = max(file[:10] for file in files)
    own = {file: ratios for file, ratios in files.items() if file.startswith(last)}
    every = sorted(ratio for ratios in own.values() for ratio in ratios)
    low, high = around_median(every)
    return Time(median(every), low, high, len(every), tuple(own))


def around_median(values: Sequence[float]) -> tuple[float, float]:
    """The k-th least and k-th most of sorted values, k as large as the median of what they were drawn from still lies
    between them in 95 % of cases, whatever they are spread like; the ends where there are fewer than six."""
    count, best = len(values), 1
    for k in range(2, count // 2 + 1):
        if 1 - 2 * sum(comb(count, i) for i in range(k)) / 2**count >= SURE:
            best = k
    return values[best - 1], values[-best]
