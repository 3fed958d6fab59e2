"""Every adapter method beside the recipe's own: what each would train and take, all else being equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import refusal
from tunesmith.adapters.settings import AdapterSettings
from tunesmith.errors import TunesmithError
from tunesmith.plan.planner import Need, Planner

SHARED = ("targets", "last_blocks", "r", "alpha", "rank_stabilised", "num_tokens")
"""Settings that another method is given too, where it has them."""


@dataclass(frozen=True)
class Candidate:
    method: str
    need: Need | None
    reason: str = ""
    """Why there is none."""


def side_by_side(
    planner: Planner, storage: str, tell: Callable[[float], object] = lambda share: None
) -> list[Candidate]:
    """One for each method, in the table's order. `storage`: how the base is held."""
    found = []
    for number, method in enumerate(METHODS):
        found.append(_tried(planner, method, storage))
        tell((number + 1) / len(METHODS))
    return found


def _tried(planner: Planner, method: str, storage: str) -> Candidate:
    settings = like(planner.recipe.adapter, method)
    reason = refusal(settings, storage)
    if reason is not None:
        return Candidate(method, None, reason)
    recipe = planner.recipe.model_copy(update={"adapter": settings})
    try:
        return Candidate(method, planner.need(recipe, quick=True))
    except TunesmithError as error:
        return Candidate(method, None, error.what)


def like(settings: AdapterSettings, method: str) -> AdapterSettings:
    """Of another method, with what both let one choose; its own defaults where that does not go."""
    if settings.method == method:  # type: ignore[attr-defined]
        return settings
    made: Any = METHODS[method].Settings  # type: ignore[attr-defined]
    given: dict[str, Any] = {
        name: getattr(settings, name)
        for name in SHARED
        if name in settings.model_fields_set and name in made.model_fields
    }
    try:
        return made(**given)  # type: ignore[no-any-return]
    except (ValidationError, TunesmithError, ValueError):
        return made()  # type: ignore[no-any-return]
