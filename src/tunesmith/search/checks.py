"""Everything that can be wrong with a search, said before its first model loads."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.compare.grid import LEFT_TO_THE_STUDY, Arm, resolve, taken_out
from tunesmith.data.problems import counted
from tunesmith.errors import RecipeError, TunesmithError, together
from tunesmith.progress import Progress
from tunesmith.recipe import Recipe
from tunesmith.run import built, read_rows
from tunesmith.search import rungs, space
from tunesmith.search.confirm import Kept, keep
from tunesmith.search.settings import Search
from tunesmith.search.space import Range, Space, Values
from tunesmith.train.budget import Budget
from tunesmith.train.every import first_due
from tunesmith.train.settings import BUDGETS

MOST_AT_ONCE = 8
MOST_BY_MEDIAN = 50
RATIOS = (1, 2, 4, 8, 16, 20)
BUDGET_KEYS = frozenset(f"train.{name}" for name in BUDGETS)


@dataclass(frozen=True)
class Plan:
    """A search that can be run."""

    space: Space
    trials: int
    """How many trials there are at most."""
    first: tuple[Values, ...]
    """What is tried first."""
    own: Values | None
    """The recipe's own values, where they are in the space."""
    num_steps: int
    """Of one run of the recipe."""
    budget: int
    """Steps of all trials together."""
    rungs: list[rungs.Rung]
    """Empty with median pruning."""
    first_evaluation: int
    seed: int
    recipe: Recipe
    """With what all trials share, and its own rows."""
    kept: Kept
    """The rows that no trial sees."""
    barred: tuple[str, ...] = ()
    """Why combinations that no recipe can have are left out, a line for each."""

    def lines(self) -> list[str]:
        """What will be done."""
        told = []
        for key, domain in self.space.items():
            if isinstance(domain, Range):
                told.append(f"  {key} from {domain.low:g} to {domain.high:g}" + (" by magnitude" if domain.log else ""))
            else:
                told.append(f"  {key} among {', '.join(map(str, domain))}")
        if self.rungs:
            shares = ", then ".join(f"{rung.trials} to step {rung.step}" for rung in self.rungs)
            told.append(f"  {shares}; a run has {self.num_steps} steps")
        else:
            told.append(f"  at most {self.trials} trials and {self.budget} steps; a run has {self.num_steps}")
        if self.barred:
            reasons = "; ".join(dict.fromkeys(self.barred))
            left_out = counted(len(self.barred), "combination")
            told.append(f"  left out, since no run can have them together: {left_out} ({reasons})")
        if self.kept.missing is None:
            told.append(f"  kept to confirm what is found, seen by no trial: {counted(self.kept.num_test, 'row')}")
        else:
            told.append(f"  what is found will not be confirmed: {self.kept.missing}")
        return ["looking for", *told]


def plan(search: Search, *, trust_remote_code: bool = False) -> Plan:
    """What will be tried, all of it checked; or every fault of a kind in one error."""
    settings = search.settings
    _refuse_what_is_not_searched(search)
    base = resolve(search, Arm("the recipe", _shared(search)))
    recipe = base.recipe
    wanted = settings.space or default_space(recipe)
    barred = _refuse_impossible(search, wanted)
    if recipe.data.held_out is None:
        raise RecipeError(
            "a search has no rows to choose by",
            where=search.where("recipe"),
            fix="hold rows out: data.held_out=0.05",
        )
    if recipe.train.minutes is not None:
        raise RecipeError(
            "a search counts steps, and the recipe's budget is in minutes",
            where=search.where("recipe"),
            fix="give train.steps or train.epochs: shared.train.minutes=null shared.train.steps=200",
        )
    kept = keep(search, recipe, wanted, trust_remote_code=trust_remote_code)
    own_rows = [] if kept.train is None else taken_out(search, kept.train)
    of_trials = resolve(search, Arm("the recipe", _shared(search)), own_rows).recipe
    whole = _budget(of_trials, trust_remote_code)
    num_steps = whole.num_steps
    assert num_steps is not None  # minutes were refused
    if not num_steps:
        raise RecipeError(
            "a search stops trials after some of their steps, and the recipe takes none",
            where=search.where("recipe"),
            found="objective.way=features, which fits the head at once",
            fix="train it: its strength is searched in the fit itself; or search with way head or all",
        )
    combinations = space.count(wanted)
    if combinations is not None:
        combinations -= len(barred)
    if settings.trials is not None:
        trials = settings.trials if combinations is None else min(settings.trials, combinations)
    elif settings.pruning == "median":
        trials = MOST_BY_MEDIAN if combinations is None else combinations
    else:
        trials = MOST_AT_ONCE if combinations is None else min(MOST_AT_ONCE, combinations)
    plain = {f"{section}.{key}": value for section, own in base.plain.items() for key, value in own.items()}
    base_values = {key: plain.get(key) for key in wanted}
    own = _as_in(wanted, base_values) if space.holds(wanted, base_values) else None
    first = [own] if own is not None else []
    for values in (*_given(search, wanted), *_earlier(search, wanted)):
        if values not in first and impossible(search, values) is None:
            first.append(values)
    if combinations is None or combinations > trials:
        space.need_optuna()
    budget = int(settings.budget * num_steps + 1e-9)
    every = recipe.train.evaluate_every
    first_evaluation = math.ceil(num_steps / 10) if every is None else first_due(every, whole.steps_per_epoch)
    shared_out = rungs.plan(trials, settings.budget, num_steps) if settings.pruning == "halving" else []
    if settings.pruning == "halving" and not shared_out:
        enough = math.ceil(20 * trials / num_steps) / 10
        raise RecipeError(
            f"the budget of {budget} steps has none for some of the {trials} trials",
            where=search.where("budget"),
            fix=f"budget={enough:g} or more, fewer trials, or more steps in the recipe",
        )
    return Plan(
        wanted, trials, tuple(first[:trials]), own, num_steps, budget, shared_out,
        min(max(1, first_evaluation), num_steps), recipe.train.seed, recipe, kept, tuple(barred),
    )  # fmt: skip


def default_space(recipe: Recipe) -> dict[str, tuple[Any, ...] | Range]:
    """The learning rate around the recipe's, and LoRA+'s ratio where the method has one."""
    rate = recipe.train.learning_rate
    found: dict[str, tuple[Any, ...] | Range] = {
        "train.learning_rate": Range(low=float(f"{rate / 4:.3g}"), high=float(f"{rate * 4:.3g}"), log=True)
    }
    if "lr_ratio" in type(recipe.adapter).model_fields:
        found["adapter.lr_ratio"] = RATIOS
    return found


def _shared(search: Search) -> tuple[tuple[str, Any, str], ...]:
    return tuple((key, value, search.where("shared", key)) for key, value in search.settings.shared.items())


def _refuse_what_is_not_searched(search: Search) -> None:
    errors: list[TunesmithError] = []
    for key in search.settings.space:
        where = search.where("space", key)
        if key in BUDGET_KEYS:
            errors.append(RecipeError(f"{key} is the budget by which trials are measured", where=where))
        elif key.startswith(("data.held_out", "objective.")) or key in ("objective", "train.evaluate_every"):
            errors.append(RecipeError(f"{key} changes what trials are judged by", where=where))
        elif key in LEFT_TO_THE_STUDY or key.startswith("output."):
            errors.append(RecipeError(f"{key} is nothing to search", where=where))
    if errors:
        raise together(errors)


def impossible(search: Search, values: Values) -> RecipeError | None:
    """Why no recipe can have these values together, or None."""
    own = tuple((key, value, search.where("space", key)) for key, value in values.items())
    try:
        resolve(search, Arm("a trial", (*_shared(search), *own)))
    except RecipeError as error:
        return error
    return None


def _refuse_impossible(search: Search, wanted: Space) -> list[str]:
    """Refuses every value that no combination can have; says why others cannot be together, once for each of them.

    Of more combinations than are listed, and of ranges, a value is refused where it is so beside the first of the
    others and beside what the recipe has; what else cannot be together is passed over when it is proposed.
    """
    listed = space.grid(wanted)
    reasons = None if listed is None else [(values, impossible(search, values)) for values in listed]
    errors: dict[str, TunesmithError] = {}
    for key, value, values in space.ends(wanted):
        if reasons is not None:
            beside = [error for own, error in reasons if own[key] == value]
            error = None if None in beside else beside[0]
        else:
            error = impossible(search, values) and impossible(search, {key: value})
        if error is not None:
            errors.setdefault(str(error), error)
    if errors:
        raise together(list(errors.values()))
    return [error.what for _, error in reasons or () if error is not None]


def _budget(recipe: Recipe, trust_remote_code: bool) -> Budget:
    """Of one run; reads the rows."""
    with Progress(quiet=True) as quiet:
        _, prepared = read_rows(recipe, trust_remote_code, quiet)
    return Budget.of(recipe.train, built(recipe, prepared))


def _given(search: Search, wanted: Space) -> list[Values]:
    """`start`, each with a value for every setting."""
    found, errors = [], list[TunesmithError]()
    for index, values in enumerate(search.settings.start):
        where = search.where("start", index)
        lacking, foreign = [k for k in wanted if k not in values], [k for k in values if k not in wanted]
        if lacking or foreign:
            errors.append(
                RecipeError(
                    f"start {index + 1} has not the settings that are searched",
                    where=where,
                    found=", ".join(values),
                    expected=", ".join(wanted),
                )
            )
        elif not space.holds(wanted, values):
            errors.append(RecipeError(f"start {index + 1} is not in the space", where=where, found=str(values)))
        elif (wrong := impossible(search, values)) is not None:
            errors.append(wrong.noted("start", str(index + 1)))
        else:
            found.append(_as_in(wanted, values))
    if errors:
        raise together(errors)
    return found


def _earlier(search: Search, wanted: Space) -> list[Values]:
    """The three best of an earlier search, those that are in this one's space."""
    if search.settings.warm_start is None:
        return []
    where = search.where("warm_start")
    tried = [search.beside / search.settings.warm_start, Path.cwd() / search.settings.warm_start]
    file = next((path / "results.json" for path in tried if (path / "results.json").is_file()), None)
    if file is None:
        raise RecipeError(
            f"warm_start: there is no search in {search.settings.warm_start}",
            where=where,
            notes={"looked for": " and ".join(dict.fromkeys(str(path / "results.json") for path in tried))},
            fix="give the folder of a search that has ended, or take warm_start out",
        )
    try:
        trials = [trial["values"] for trial in json.loads(file.read_text())["trials"] if trial["failed"] is None]
    except (OSError, ValueError, KeyError, TypeError):
        what, fix = "warm_start: these are no search's results", "give the folder of a search that has ended"
        raise RecipeError(what, where=str(file), fix=fix) from None
    best = [_as_in(wanted, values) for values in trials if space.holds(wanted, values)][:3]
    if not best:
        raise RecipeError(
            "warm_start: none of its trials lies in this search's space",
            where=where,
            found=", ".join(dict.fromkeys(key for values in trials for key in values)),
            expected=", ".join(wanted),
        )
    return best


def _as_in(wanted: Space, values: Values) -> Values:
    """The searched settings alone, a choice as it is written in the space (1 for 1.0)."""
    found = {}
    for key, domain in wanted.items():
        value = values[key]
        found[key] = value if isinstance(domain, Range) else next(one for one in domain if one == value)
    return found
