"""What could be changed so that a recipe fits: each change by itself, cheapest first, and together until it does."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunesmith.adapters.adapter_set import refusal
from tunesmith.adapters.settings import NONE
from tunesmith.errors import TunesmithError
from tunesmith.plan.planner import Need, Planner
from tunesmith.recipe import Recipe

NOTICEABLE = 0.03
"""Share of what the step holds that a change has to save to be worth a line."""


@dataclass(frozen=True)
class Change:
    """Settings that take less memory, and what they cost."""

    settings: dict[str, Any]
    cost: str
    memory: int = 0
    """Bytes at the peak of training, with it."""

    @property
    def typed(self) -> str:
        """As overrides of a command."""
        words = {key: str(value).lower() if isinstance(value, bool) else value for key, value in self.settings.items()}
        return " ".join(f"{key}={value}" for key, value in words.items())


def changes(planner: Planner, need: Need) -> list[Change]:
    """Those that save something, by themselves, cheapest first; each with what would then be taken."""
    found = []
    for change in _candidates(planner, need):
        after = _with(planner, change.settings)
        if after is not None and after.trial.parts.peak < need.trial.parts.peak * (1 - NOTICEABLE):
            found.append(Change(change.settings, change.cost, after.memory))
    return found


def that_fits(planner: Planner, found: list[Change], room: int) -> Change | None:
    """The cheapest that fits: one of `found`, or the first so many of them together; None: not even all."""
    for change in found:
        if change.memory <= room:
            return change
    for count in range(2, len(found) + 1):
        settings: dict[str, Any] = {}
        for change in found[:count]:
            settings |= change.settings
        after = _with(planner, settings)
        if after is not None and after.memory <= room:
            return Change(settings, "; ".join(change.cost for change in found[:count]), after.memory)
    return None


def _candidates(planner: Planner, need: Need) -> Iterator[Change]:
    recipe, trial = planner.recipe, need.trial
    has_bitsandbytes = importlib.util.find_spec("bitsandbytes") is not None
    if trial.rows > 1:
        yield Change(
            {"train.micro_batch_tokens": trial.longest}, "the same result, a little slower: one long row at a time"
        )
    if not recipe.train.recompute:
        yield Change({"train.recompute": True}, "the same result, about a third more time")
    if recipe.train.optimizer != "adamw-8bit" and has_bitsandbytes:
        yield Change({"train.optimizer": "adamw-8bit"}, "moments rounded to 8 bits")
    if recipe.model.storage in ("auto", "plain") and has_bitsandbytes and refusal(recipe.adapter, "nf4") is None:
        yield Change({"model.storage": "nf4"}, "the base rounded to 4 bits, and steps slower")
    longest = trial.longest // 2
    if longest >= SHORTEST and not recipe.objective.answer_tokens:
        cut = sum(len(row) > longest for row in planner.prepared.train)
        yield Change({"data.max_length": longest}, f"{cut:,} of {len(planner.prepared.train):,} rows are too long then")
    is_fresh = recipe.model.adapter is None and recipe.adapter.targets != NONE
    if is_fresh and recipe.adapter.last_blocks is None and planner.num_blocks >= 4:
        half = planner.num_blocks // 2
        yield Change({"adapter.last_blocks": half}, f"the lower {planner.num_blocks - half} blocks do not learn")


SHORTEST = 64
"""Tokens below which rows are not asked to be shorter."""


def _with(planner: Planner, settings: dict[str, Any]) -> Need | None:
    longest = settings.get("data.max_length")
    try:
        recipe = changed(planner.recipe, {key: value for key, value in settings.items() if key != "data.max_length"})
        return planner.need(recipe, quick=True, longest=longest)
    except TunesmithError:
        return None


def changed(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """`recipe` with other settings, none of its files looked at again."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return recipe.model_copy(
        update={name: getattr(recipe, name).model_copy(update=values) for name, values in sections.items()}
    )
