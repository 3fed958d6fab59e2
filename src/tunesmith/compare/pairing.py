"""What was measured of an arm, by seed and row, and two arms side by side: the same seeds, the same rows, one unit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.compare.study import Done
from tunesmith.compare.verdict import HELD_OUT, LOSS, REWARD, Measure

Items = Mapping[int, float]
"""A cell's score by item; one item 0 for a figure of the whole run."""
Pair = tuple[NDArray[np.float64], NDArray[np.float64], list[int]]
"""Two arrays [seeds, items] and the items."""
ONCE = -1
"""Stands for the seed of what no seed changes."""
READ_BY = {
    "model": ("name", "revision", "template"),
    "data": ("format", "columns", "learn", "learn_ends", "system_turn"),
}
"""Settings by which a row becomes tokens."""
JUDGED_BY: dict[str, tuple[tuple[str, ...] | None, tuple[Measure, ...]]] = {
    "preference": (None, (LOSS, HELD_OUT)),
    "reward": (None, (LOSS, HELD_OUT)),
    "distill": (None, (HELD_OUT,)),
    "policy": (("rewards", "reward_weights", "gold", "environment", "max_turns"), (REWARD,)),
}
"""By objective.kind the settings of its section that decide what its figures mean (None: all but `WITHOUT_MEANING`),
and which figures."""
WITHOUT_MEANING = ("reference",)
"""When the reference's numbers are computed, which changes none."""


@dataclass(frozen=True)
class Measured:
    """Of an arm's cells that did not fail."""

    scores: dict[str, dict[int, Items]]
    """measure -> seed -> item -> score; of the test loss the sum over a row's learned tokens."""
    learned: dict[int, Items] = field(default_factory=dict)
    """seed -> row -> how many learned tokens it has."""
    read_by: Mapping[tuple[str, str], Any] | None = None
    """The arm's settings of `READ_BY`, where they are known."""
    judged_by: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """measure -> the settings of `JUDGED_BY`."""

    def by_seed(self, measure: Measure) -> dict[int, Items]:
        """seed -> item -> score; a row's loss as its share of the loss per learned token of all rows."""
        found = self.scores.get(measure.key, {})
        if measure.key != LOSS.key:
            return found
        means = {seed: float(np.mean(list(own.values()))) for seed, own in self.learned.items()}
        return {seed: {row: v / means.get(seed, 1.0) for row, v in rows.items()} for seed, rows in found.items()}

    def is_like(self, other: Measured, measure: Measure) -> bool:
        """Whether both are in one unit by this measure."""
        return self.is_judged_like(other, measure) and (not is_loss(measure) or self._is_read_like(other))

    def is_judged_like(self, other: Measured, measure: Measure) -> bool:
        """Whether the settings of the objective agree that decide what the figure means."""
        ours, theirs = (one.judged_by.get(measure.key) for one in (self, other))
        return ours is None or theirs is None or ours == theirs

    def _is_read_like(self, other: Measured) -> bool:
        """Whether losses per token of both are in one unit: each row of the test has as many learned tokens here as
        there. Where no row of the test has a loss, whether the settings agree by which a row becomes tokens."""
        ours, theirs = (next(iter(one.learned.values()), {}) for one in (self, other))
        common = set(ours) & set(theirs)
        if common:
            return all(ours[row] == theirs[row] for row in common)
        return self.read_by is None or other.read_by is None or self.read_by == other.read_by


def measured_of(cells: Sequence[Done], recipe: Mapping[str, Any]) -> Measured:
    """Of one arm's cells; `recipe` holds its resolved settings, nothing for the base."""
    found = Measured({})
    if recipe:
        settings = {(section, key): recipe[section].get(key) for section, keys in READ_BY.items() for key in keys}
        found = Measured({}, read_by=settings, judged_by=_judged_by(recipe))
    for done in cells:
        if done.failed is not None:
            continue
        seed = ONCE if done.seed is None else done.seed
        measures, summary = read(done.folder / "measures.json"), read(done.folder / "summary.json")
        if "loss" in measures:
            loss = measures["loss"]
            rows = [int(row) for row in loss["rows"]]
            found.scores.setdefault(LOSS.key, {})[seed] = dict(zip(rows, loss["sum"], strict=True))
            found.learned[seed] = dict(zip(rows, loss["weight"], strict=True))
        for name, own in measures.get("by_row", {}).items():
            if own["rows"]:
                by_row = dict(zip(map(int, own["rows"]), own["values"], strict=True))
                found.scores.setdefault(name, {})[seed] = by_row
        for name, values in measures.get("scores", {}).items():
            found.scores.setdefault(name, {})[seed] = dict(enumerate(values))
        held_out = (summary.get("best_metrics") or {}).get("loss")
        if held_out is not None:
            found.scores.setdefault(HELD_OUT.key, {})[seed] = {0: held_out}
    return found


def _judged_by(recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    objective = recipe.get("objective", {})
    keys, affected = JUDGED_BY.get(objective.get("kind", ""), ((), ()))
    own = {key: objective.get(key) for key in keys or objective if key not in WITHOUT_MEANING}
    return {measure.key: own for measure in affected}


def read(path: Path) -> dict[str, Any]:
    """A file of JSON; nothing where there is none."""
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def is_loss(measure: Measure) -> bool:
    return measure.key in (LOSS.key, HELD_OUT.key)


def side_by_side(ours: Measured, theirs: Measured, measure: Measure) -> Pair | None:
    """Both arms' scores on what they have in common; None where that is nothing, or losses are not of one unit."""
    if not ours.is_like(theirs, measure):
        return None
    found = paired(ours.scores.get(measure.key, {}), theirs.scores.get(measure.key, {}))
    learned = paired(ours.learned, theirs.learned) if measure.key == LOSS.key else None
    if found is None or learned is None:
        return found
    mean = learned[0].mean()
    return found[0] / mean, found[1] / mean, found[2]


def paired(ours: Mapping[int, Items], theirs: Mapping[int, Items]) -> Pair | None:
    """Two arrays [seeds, items] of the seeds and items that both have, and the items; None where there are none.

    What no seed changes stands beside every seed of the other.
    """
    if ONCE in ours and ONCE in theirs:
        seeds = [(ONCE, ONCE)]
    elif ONCE in ours:
        seeds = [(ONCE, seed) for seed in theirs]
    elif ONCE in theirs:
        seeds = [(seed, ONCE) for seed in ours]
    else:
        seeds = [(seed, seed) for seed in ours if seed in theirs]
    if not seeds:
        return None
    items = sorted(set.intersection(*(set(ours[a]) & set(theirs[b]) for a, b in seeds)))
    if not items:
        return None
    left = np.array([[ours[a][item] for item in items] for a, _ in seeds], dtype=float)
    right = np.array([[theirs[b][item] for item in items] for _, b in seeds], dtype=float)
    return left, right, items
