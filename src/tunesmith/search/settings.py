"""A search as it is written: one recipe, and the settings that are looked for.

search = load("search.yaml" or "recipe.yaml", ["budget=2"]) -> Search: strict, every fault at once, each with its line
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from tunesmith.compare.settings import Planned, PlanSettings, planned, read_plan
from tunesmith.dialects.read import recognise
from tunesmith.notation import Path
from tunesmith.recipe import SECTIONS
from tunesmith.search.space import Range
from tunesmith.settings import Contradiction


class SearchSettings(PlanSettings):
    """A search in full."""

    space: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)] | Range] = {}
    """What is looked for, by section.key: a list of choices, or a range {low, high, log}. Empty: the learning rate,
    from a quarter to four times the recipe's, and LoRA+'s ratio where the method has one."""
    budget: PositiveFloat = 1.5
    """Steps of all trials together, in runs of the recipe."""
    trials: Annotated[int, Field(ge=2)] | None = None
    """How many are begun; null: every combination where there are at most 8, else 8. With median pruning: the most."""
    pruning: Literal["halving", "median"] = "halving"
    """halving: all are trained a little, the better half goes on to twice as many steps, until two are left. median:
    one after the other is trained in whole, unless an evaluation is worse than the median of those before."""
    start: tuple[dict[str, Any], ...] = ()
    """Values that are tried first, after the recipe's own."""
    warm_start: str | None = None
    """The folder of an earlier search of the same settings: its three best are tried first."""
    sampler_seed: NonNegativeInt = 0
    """Of the values that are drawn; what a trial draws while it trains is by the recipe's train.seed."""

    @model_validator(mode="after")
    def _a_choice(self) -> Self:
        for key, domain in self.space.items():
            if isinstance(domain, tuple) and any(domain.count(value) > 1 for value in domain):
                raise Contradiction(f"space.{key}", "names a value twice")
        if self.space and all(isinstance(domain, tuple) and len(domain) == 1 for domain in self.space.values()):
            raise Contradiction("space", "holds no choice", "give a setting two values or a range")
        return self


Search = Planned[SearchSettings]


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Search:
    """The search in a YAML file; or of a recipe, with what is looked for on the command line or left to us."""
    values, lines = read_plan(path, "a search", SearchSettings)
    file = FilePath(path)
    theirs = recognise(values, str(file)) is not None
    if "recipe" not in values and (theirs or any(section in values for section in SECTIONS)):
        values, lines = {"recipe": str(file.absolute())}, {}
        overrides = [_of_every_run(text) for text in overrides]
        return planned(
            SearchSettings, "a search", values, overrides, f"{file.stem}-search", str(file), file.parent, lines
        )
    return planned(SearchSettings, "a search", values, overrides, file.stem, str(file), file.parent, lines)


def from_dict(values: Mapping[str, Any], overrides: Sequence[str] = (), *, name: str = "search") -> Search:
    """The search in plain nested values; relative paths start at the current folder."""
    lines: dict[Path, str] = {}
    own = copy.deepcopy(dict(values))
    return planned(SearchSettings, "a search", own, overrides, name, "search", FilePath(), lines)


def _of_every_run(text: str) -> str:
    """A recipe's setting on the command line is one of all runs."""
    return f"shared.{text}" if text.partition("=")[0].partition(".")[0].strip() in SECTIONS else text
