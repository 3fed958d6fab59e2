"""What could be changed so that a recipe fits: each change by itself, cheapest first, and together until it does."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tunesmith.adapters.adapter_set import check, refusal
from tunesmith.adapters.settings import NONE
from tunesmith.errors import TunesmithError
from tunesmith.plan.bench import Cut
from tunesmith.plan.planner import Need, Planner
from tunesmith.recipe import Recipe
from tunesmith.recipe_rules import RULES
from tunesmith.settings import Contradiction

NOTICEABLE = 0.03
"""Share of what the step holds that a change has to save to be worth a line."""

NEEDS = " (needs pip install 'tunesmith[bitsandbytes]')"
"""The forecast does not: it is of shapes alone."""


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
    """The cheapest that fits: one of `found`, or the first so many of them together, without those that are not needed;
    None: not even all."""
    for change in found:
        if change.memory <= room:
            return change
    for count in range(2, len(found) + 1):
        if (fitting := _fitting(planner, found[:count], room)) is None:
            continue
        taken = found[:count]
        for dear in reversed(found[: count - 1]):  # the last is needed: without it, nothing fitted
            fewer = [change for change in taken if change is not dear]
            if len(fewer) > 1 and (without := _fitting(planner, fewer, room)) is not None:
                taken, fitting = fewer, without
        return fitting
    return None


def _fitting(planner: Planner, together: list[Change], room: int) -> Change | None:
    """These changes as one, where that fits."""
    settings: dict[str, Any] = {}
    for change in together:
        settings |= change.settings
    after = _with(planner, settings)
    if after is None or after.memory > room:
        return None
    return Change(settings, "; ".join(change.cost for change in together), after.memory)


def _candidates(planner: Planner, need: Need) -> Iterator[Change]:
    recipe, trial = planner.recipe, need.trial
    if trial.rows > 1:
        yield Change(
            {"train.micro_batch_tokens": trial.longest}, "the same result, a little slower: one long row at a time"
        )
    if not recipe.train.recompute:
        yield Change({"train.recompute": True}, "the same result, about a third more time")
    needs = "" if importlib.util.find_spec("bitsandbytes") else NEEDS
    if recipe.train.optimizer != "adamw-8bit":
        yield Change({"train.optimizer": "adamw-8bit"}, f"moments rounded to 8 bits{needs}")
    if recipe.model.storage in ("auto", "plain") and refusal(recipe.adapter, "nf4") is None:
        yield Change({"model.storage": "nf4"}, f"the base rounded to 4 bits, and steps slower{needs}")
    yield from _shorter(planner, trial.longest // 2)
    is_fresh = recipe.model.adapter is None and recipe.adapter.targets != NONE
    if is_fresh and recipe.adapter.last_blocks is None and planner.num_blocks >= 4:
        half = planner.num_blocks // 2
        yield Change({"adapter.last_blocks": half}, f"the lower {planner.num_blocks - half} blocks do not learn")


SHORTEST = 64
"""Tokens below which rows are not asked to be shorter."""


def _shorter(planner: Planner, longest: int) -> Iterator[Change]:
    """Rows of half the length: longer ones are left out, as the recipe says; cut, where that would be most of them."""
    rows = planner.foreseen.rows
    if longest < SHORTEST or not planner.foreseen.is_own:
        return
    count = sum(len(row) > longest for row in rows)
    settings: dict[str, Any] = {"data.max_length": longest}
    if planner.recipe.data.overlong == "drop" and 2 * count <= len(rows):
        yield Change(settings, f"{count:,} of {len(rows):,} rows are left out then")
        return
    if planner.recipe.data.overlong != "truncate":
        settings["data.overlong"] = "truncate"
    yield Change(settings, f"{count:,} of {len(rows):,} rows are cut then")


def _with(planner: Planner, settings: dict[str, Any]) -> Need | None:
    """What the recipe would need with `settings`; None where they do not go with the rest of it."""
    try:
        recipe = changed(planner.recipe, settings)
        if recipe.model.adapter is None:
            check(recipe.adapter, planner.budget.num_steps, recipe.train.optimizer)
        cut = None
        if "data.max_length" in settings:
            cut = Cut(recipe.data.max_length, recipe.data.overlong == "truncate")
        return planner.need(recipe, quick=True, cut=cut)
    except (TunesmithError, ValidationError, Contradiction):
        return None


def changed(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """`recipe` with other settings, which the records and the rules between them accept; none of its files is looked
    at again."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    made = {}
    for name, values in sections.items():
        before = getattr(recipe, name)
        made[name] = type(before).model_validate(before.model_dump(exclude_unset=True) | values)
    whole = recipe.model_copy(update=made)
    for rule in RULES:
        rule(whole)
    return whole
