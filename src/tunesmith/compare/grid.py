"""A study's grid: arms, each with its own resolved recipe, and cells, each one run.

A cell is known again by a fingerprint of what decides its weights: the resolved recipe, and the bytes of all files and
folders that it names, data and model too, wherever they lie. What is finished under a fingerprint is never done again.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from tunesmith.adapters.adapter_set import for_share
from tunesmith.compare.contents import digest, placeless
from tunesmith.compare.settings import Planned, Study
from tunesmith.dialects.read import load
from tunesmith.errors import RecipeError, TunesmithError, together
from tunesmith.notation import write_inline
from tunesmith.recipe import Change, Recipe, Resolved, from_dict
from tunesmith.record import FREE_TO_CHANGE
from tunesmith.train.settings import BUDGETS

LEFT_TO_THE_STUDY = {
    "train.seed": "seeds",
    "output.folder": "folder",
    "output.name": "the arm's name",
    "output.report_to": None,
}


LONGEST = 80
"""Letters of a name in that of a folder, which a file system limits to 255 bytes."""


@dataclass(frozen=True)
class Arm:
    """One way of training, with what it has otherwise than the shared recipe."""

    name: str
    changes: tuple[Change, ...]

    @property
    def slug(self) -> str:
        """Its name as that of a folder; of a long one the beginning, and what tells it from others."""
        made = re.sub(r"[^\w.+-]+", "-", self.name).strip("-.") or "arm"
        return made if len(made) <= LONGEST else f"{made[:LONGEST]}-{digest(self.name)[:8]}"


@dataclass(frozen=True)
class Cell:
    """One run: an arm with one seed, or one trial of a learning rate (`rung` and `learning_rate` given)."""

    arm: Arm
    seed: int
    resolved: Resolved
    fingerprint: str
    rung: int | None = None
    learning_rate: float | None = None

    @property
    def folder(self) -> FilePath:
        return self.resolved.folder

    @property
    def title(self) -> str:
        if self.rung is None:
            return f"{self.arm.name}, seed {self.seed}"
        return f"{self.arm.name}, trial of learning rate {self.learning_rate:g} (round {self.rung + 1})"


def arms_of(study: Study) -> list[Arm]:
    """Every arm: the named ones, each with every combination of what varies."""
    settings = study.settings
    _refuse_what_is_the_study_s(study)
    named: dict[str, dict[str, Any]] = {name: dict(changes or {}) for name, changes in settings.arms.items()}
    shared = [(key, value, study.where("shared", key)) for key, value in settings.shared.items()]
    arms = []
    for name, changes in (named or {"": {}}).items():
        own = [(key, value, study.where("arms", name, key)) for key, value in changes.items()]
        for values in itertools.product(*settings.vary.values()):
            varied = dict(zip(settings.vary, values, strict=True))
            words = [name] if name else []
            words += [_said(key, value) for key, value in varied.items()]
            more = [(key, value, study.where("vary", key)) for key, value in varied.items()]
            arms.append(Arm(", ".join(words), (*shared, *own, *more)))
    slugs: dict[str, str] = {}
    untuned = {prompted(shots) for shots in settings.prompting}
    for arm in arms:
        if any(arm.name == name or arm.name.startswith(f"{name}, ") for name in untuned):
            raise RecipeError(
                f"an arm cannot be called {arm.name!r}: so is the row of the base",
                where=study.where("arms", arm.name),
                fix="give it another name",
            )
        if arm.slug.lower() in slugs:
            raise RecipeError(
                f"the arms {slugs[arm.slug.lower()]!r} and {arm.name!r} would share a folder",
                where=study.where("arms"),
                fix="name them more differently",
            )
        slugs[arm.slug.lower()] = arm.name
    return arms


def prompted(shots: int) -> str:
    """What a row of the base is called."""
    return "no tuning, zero-shot" if shots == 0 else f"no tuning, {shots}-shot"


def _said(key: str, value: Any) -> str:
    """adapter.method: dora is "dora"; adapter.r: 8 is "r 8"."""
    last = key.rpartition(".")[2]
    return str(value) if last == "method" else f"{last} {write_inline(value)}"


def _refuse_what_is_the_study_s(study: Study) -> None:
    errors: list[TunesmithError] = []
    own = [(key, study.where("arms", name, key)) for name, given in study.settings.arms.items() for key in given or {}]
    own += [(key, study.where("vary", key)) for key in study.settings.vary]
    shared = [(key, study.where("shared", key)) for key in study.settings.shared]
    for key, where in [*own, *shared]:
        if key in LEFT_TO_THE_STUDY:
            theirs = LEFT_TO_THE_STUDY[key]
            fix = f"say it by the study's {theirs}" if theirs else "take it out"
            errors.append(RecipeError(f"{key} is not an arm's to choose", where=where, fix=fix))
    for key, where in own:
        if key == "train.learning_rate" and study.settings.learning_rates != "fixed":
            errors.append(
                RecipeError(
                    f"{key} is given beside learning_rates, which tries them for every arm alike",
                    where=where,
                    fix="take one of the two out",
                )
            )
    for key, values in study.settings.vary.items():
        if not values:
            errors.append(RecipeError(f"vary.{key} has no value", where=study.where("vary", key)))
    if errors:
        raise together(errors)


def resolve(study: Planned[Any], arm: Arm, changes: Iterable[Change] = ()) -> Resolved:
    """The arm's recipe, with `changes` of the study's own on top."""
    recipe, every = study.settings.recipe, (*arm.changes, *changes)
    if isinstance(recipe, str):
        tried = [study.beside / FilePath(recipe).expanduser(), FilePath.cwd() / recipe]
        found = next((path for path in tried if path.exists()), None)
        if found is None:
            raise RecipeError(
                f"there is no recipe {recipe}",
                where=study.where("recipe"),
                notes={"looked for": " and ".join(dict.fromkeys(map(str, tried)))},
                fix="give its path from the study's folder or the current one",
            )
        return load(found, changes=every)
    sources = {place[1:]: line for place, line in study.lines.items() if place[:1] == ("recipe",) and place[1:]}
    return from_dict(recipe, name=study.name, source=study.source, sources=sources, folder=study.beside, changes=every)


def cell(
    study: Planned[Any],
    arm: Arm,
    seed: int,
    *,
    learning_rate: float | None = None,
    rung: int | None = None,
    share: float = 1.0,
    train_rows: str | None = None,
) -> Cell:
    """The cell of an arm and a seed; of a trial, with a `share` of the budget. `train_rows`: in place of the recipe's
    file, where the test's rows were taken out of that."""
    own = f"{study.source}, seeds"
    changes: list[Change] = [("train.seed", seed, own)]
    if train_rows is not None:
        changes += taken_out(study, train_rows)
    if learning_rate is not None:
        changes.append(("train.learning_rate", learning_rate, f"{study.source}, learning_rates"))
    if share < 1.0:
        said = f"{study.source}, round {(rung or 0) + 1} of the learning rates"
        changes += shorter(resolve(study, arm).recipe, share, said)
    known = resolve(study, arm, changes)
    mark = fingerprint(known)
    trial = "" if rung is None else f"trial-{learning_rate:g}-round{rung + 1}-"
    folder = study.folder / "cells" / f"{arm.slug}-{trial}seed{seed}-{mark[:10]}"
    changes += [
        ("output.folder", str(folder), study.source),
        ("output.name", f"{study.name}-{arm.slug}", study.source),
        ("output.report_to", [], study.source),
    ]
    return Cell(arm, seed, resolve(study, arm, changes), mark, rung, learning_rate)


def taken_out(study: Planned[Any], train_rows: str) -> list[Change]:
    """The changes by which a recipe reads what is left after the test's rows were taken away."""
    said = f"{study.source}, test.rows taken out"
    return [("data.train", train_rows, said), ("data.subset", None, said), ("data.split", "train", said)]


def shorter(recipe: Recipe, share: float, source: str) -> list[Change]:
    """The changes that make of a recipe one with a share of its budget, whatever its unit: a whole run, only shorter.

    What counts steps beside the budget shrinks with it: the warm-up, and steps of the adapter's method.
    """
    train, made = recipe.train, list[Change]()
    for name in BUDGETS:
        value = getattr(train, name)
        if value is not None:
            value = max(1, round(share * value)) if isinstance(value, int) else share * value
            made.append((f"train.{name}", value, source))
    if train.warmup >= 1:
        made.append(("train.warmup", max(1, round(share * train.warmup)), source))
    if recipe.model.adapter is None:  # else its settings are those of the adapter that it goes on from
        own = for_share(recipe.adapter, share).model_dump(mode="json")
        before = recipe.adapter.model_dump(mode="json")
        made += [(f"adapter.{key}", value, source) for key, value in own.items() if value != before[key]]
    return made


def fingerprint(resolved: Resolved) -> str:
    """Of what decides a run's weights."""
    return digest(placeless(deciding(resolved.plain)))


def deciding(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of a resolved recipe the settings that a weight depends on."""
    return {
        section: {key: value for key, value in settings.items() if f"{section}.{key}" not in FREE_TO_CHANGE}
        for section, settings in plain.items()
        if section not in FREE_TO_CHANGE
    }


def differing(plain: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """setting -> arm -> value, of the settings in which the arms' resolved recipes differ; {arm: plain recipe} in."""
    names: Sequence[str] = list(dict.fromkeys(f"{s}.{k}" for own in plain.values() for s in own for k in own[s]))
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        section, _, key = name.partition(".")
        if section == "output":
            continue
        values = {arm: own[section].get(key) for arm, own in plain.items()}
        if len({json.dumps(value, sort_keys=True) for value in values.values()}) > 1:
            found[name] = values
    return found
