"""A part of the model that learns says how far the pace errs. What a clock says is made up here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_plan import planner_of, values

from tunesmith.adapters import METHODS
from tunesmith.plan import timing
from tunesmith.plan.planner import Planner
from tunesmith.plan.speed import Pace
from tunesmith.recipe import from_dict

SEEN = 3.0
"""Seconds that every part is said to take."""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every part that is timed runs once."""
    done: list[int] = []

    def timed(work: Any, device: Any) -> float:
        work()
        done.append(1)
        return SEEN

    monkeypatch.setattr(timing, "timed", timed)
    return done


def seen(place: tuple[Path, Path], tmp_path: Path, adapter: Any) -> Planner:
    planner = planner_of(from_dict(values(place, tmp_path)))
    planner.recipe = planner.recipe.model_copy(update={"adapter": adapter})
    planner.pace = Pace(1e9, 1e9)
    assert timing.seen(planner, planner.recipe)
    return planner


@pytest.mark.parametrize("method", ["lora", "dora", "prefix", "full"])
def test_a_model_that_is_quickly_made_takes_what_it_was_seen_to_take(place, tmp_path, ran, method):
    planner = seen(place, tmp_path, METHODS[method].Settings())
    assert ran == [1], "all of its blocks at once"
    own = planner.trial(planner.recipe).work
    assert planner.pace.seconds(own) == pytest.approx(SEEN, rel=0.02)
    other = planner.trial(planner.recipe.model_copy(update={"adapter": METHODS["ia3"].Settings()})).work
    share = Pace(1e9, 1e9).seconds(other) / Pace(1e9, 1e9).seconds(own)
    assert planner.pace.seconds(other) == pytest.approx(SEEN * share, rel=0.02)


def test_of_a_deep_model_two_parts_are_seen(place, tmp_path, ran, monkeypatch):
    monkeypatch.setattr(timing, "WEIGHTS", 0)
    planner = seen(place, tmp_path, METHODS["lora"].Settings(last_blocks=3))
    assert ran == [1, 1]
    assert planner.pace.factor > 0


def test_seconds_grow_with_each_block():
    assert timing.deep({7: 2.5}, 7) == 2.5
    assert timing.deep({2: 1.0, 4: 2.0}, 7) == 3.5
    assert timing.deep({2: 1.0, 4: 0.9}, 30) == 1.0, "noise is no gain"


def test_a_part_that_does_not_run_leaves_the_pace(place, tmp_path, monkeypatch):
    def broken(*_: Any) -> float:
        raise MemoryError

    monkeypatch.setattr(timing, "timed", broken)
    planner = planner_of(from_dict(values(place, tmp_path)))
    planner.pace = Pace(1e9, 1e9)
    assert not timing.seen(planner, planner.recipe)
    assert planner.pace == Pace(1e9, 1e9)


def test_nothing_is_tried_where_a_part_finds_no_room(place, tmp_path, ran, monkeypatch):
    monkeypatch.setattr(timing, "memory_free_bytes", lambda: 1000)
    planner = planner_of(from_dict(values(place, tmp_path)))
    planner.pace = Pace(1e9, 1e9)
    assert timing.factor(planner, planner.recipe) is None
    assert not ran
