"""A study as it is written: one recipe, and what varies.

study = load("study.yaml", ["seeds=[0, 1]"]) -> Study: strict, every fault at once, each with its line
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, create_model, model_validator

from tunesmith.data.settings import HeldOut
from tunesmith.errors import AS_UTF8, RecipeError, TunesmithError, together
from tunesmith.notation import Path, dotted, read, read_scalar
from tunesmith.recipe import SECTIONS
from tunesmith.recipe import json_schema as recipe_schema
from tunesmith.settings import Contradiction, Settings
from tunesmith.strict import near, parse

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class TestSettings(Settings):
    """The reported rows: never trained on, and no learning rate or checkpoint is chosen by them."""

    __test__ = False  # pytest takes any class that is called Test… for tests

    rows: float | int | str | HeldOut
    """A share (0.1) or count (200) of the recipe's rows, taken away before any arm sees them; a file or hub id of their
    own; or {key: column}."""
    score: str | tuple[str, ...] = ()
    """Scores of answers beside the loss: exact, f1, contains, number, label, sql, tool_call. The first one decides."""
    gold: str | None = None
    """Column of the right answers; null: each row's last answer."""
    limit: PositiveInt | None = None
    """Only the first so many rows."""
    max_new_tokens: PositiveInt = 128
    """Longest answer in tokens."""
    batch_size: PositiveInt = 16
    """Rows answered together."""

    @model_validator(mode="after")
    def _answers_are_scored(self) -> Self:
        for name in ("gold", "max_new_tokens", "batch_size"):
            if not self.scores and getattr(self, name) != type(self).model_fields[name].default:
                raise Contradiction(name, "has no effect: no answer is scored", "name a score, or take it out")
        return self

    @property
    def scores(self) -> tuple[str, ...]:
        return (self.score,) if isinstance(self.score, str) else self.score


class ForgetSettings(Settings):
    """General text, to see what tuning makes the model forget."""

    text: Annotated[str, Field(min_length=1)]
    """A text file, or rows with a column text; the loss on it is measured before and after."""
    limit: PositiveInt = 50
    """Only the first so many texts."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Longer texts are cut into pieces of so many tokens."""


class PlanSettings(Settings):
    """What every plan of several runs has: a recipe, what all runs change in it, and a folder."""

    recipe: str | dict[str, Any]
    """The recipe that all runs share: a file, or its sections written here."""
    shared: dict[str, Any] = {}
    """Settings of every run on top of the recipe's, as section.key or as a section in whole."""
    folder: str | None = None
    """Where everything goes; null: runs/ and the name of this file."""


class StudySettings(PlanSettings):
    """A study in full."""

    arms: dict[str, dict[str, Any] | None] = {}
    """What is compared, by name: each with the settings that it has otherwise, as section.key or as a section in whole.
    """
    vary: dict[str, tuple[Any, ...]] = {}
    """A grid: every arm with every combination of these settings' values."""
    baseline: str | None = None
    """The arm that the others are compared with; null: the first."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """Each arm is trained once with each; arms of one seed see the same rows in the same order."""
    learning_rates: Literal["fixed"] | tuple[PositiveFloat, ...] = "fixed"
    """fixed: each arm has its recipe's. A list: every arm tries all of them, by successive halving on the held-out rows
    of `tuning_seed`, and is trained with its best."""
    tuning_seed: Seed = 1000
    """Seed of the trials of learning rates; none of `seeds`."""
    test: TestSettings
    """What is reported."""
    forget: ForgetSettings | None = None
    """General text; null: what tuning makes the model forget is not measured."""
    prompting: tuple[NonNegativeInt, ...] = (0,)
    """The base without tuning, as rows of the table: 0 asks plainly, 3 shows three rows of training first."""
    price_per_hour: NonNegativeFloat | None = None
    """Of this machine, in any currency; training and tuning are priced."""

    @model_validator(mode="after")
    def _something_varies(self) -> Self:
        if not self.arms and not self.vary:
            raise Contradiction("arms", "and vary are both empty", "name at least one arm, or a setting that varies")
        return self

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise Contradiction("seeds", "names one twice")
        if self.learning_rates != "fixed" and self.tuning_seed in self.seeds:
            raise Contradiction("tuning_seed", "is one of the seeds", "give one that is reported nowhere")
        if self.learning_rates == "fixed" and self.tuning_seed != type(self).model_fields["tuning_seed"].default:
            fix = "take it out, or name rates to try: learning_rates: [1e-4, 3e-4]"
            raise Contradiction("tuning_seed", "has no effect: no learning rate is tuned", fix)
        return self

    @model_validator(mode="after")
    def _rates(self) -> Self:
        if isinstance(self.learning_rates, tuple) and len(set(self.learning_rates)) < 2:
            raise Contradiction("learning_rates", "is no choice", "give two or more different ones, or fixed")
        return self

    @model_validator(mode="after")
    def _few_shots_once(self) -> Self:
        if len(set(self.prompting)) != len(self.prompting):
            raise Contradiction("prompting", "names a number twice")
        return self


S = TypeVar("S", bound=PlanSettings, covariant=True)


@dataclass(frozen=True)
class Planned(Generic[S]):
    """A plan's settings, and where they were said."""

    settings: S
    name: str
    source: str
    folder: FilePath
    """Where everything goes."""
    beside: FilePath
    """Where relative paths start."""
    lines: dict[Path, str] = field(default_factory=dict)

    def where(self, *path: str | int) -> str:
        """The nearest place with a known line."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return self.source


Study = Planned[StudySettings]


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Study:
    """The study in a YAML file, with `key=value` overrides on top."""
    values, lines = read_plan(path, "a study", StudySettings)
    file = FilePath(path)
    return planned(StudySettings, "a study", values, overrides, file.stem, str(file), file.parent, lines)


def from_dict(values: Mapping[str, Any], overrides: Sequence[str] = (), *, name: str = "study") -> Study:
    """The study in plain nested values; relative paths start at the current folder."""
    own = copy.deepcopy(dict(values))
    return planned(StudySettings, "a study", own, overrides, name, "study", FilePath(), {})


def read_plan(
    path: str | os.PathLike[str], called: str, kind: type[PlanSettings]
) -> tuple[dict[str, Any], dict[Path, str]]:
    """(values, the line of each) of a YAML file; `called` is its name in errors ("a study")."""
    file = FilePath(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        name = called.removeprefix("a ")
        fix = "check the spelling, and whether you may read it"
        raise RecipeError(f"the {name} cannot be read: {error.strerror}", where=str(path), fix=fix) from None
    except UnicodeDecodeError as error:
        raise RecipeError("is not text in UTF-8", where=str(file), found=str(error), fix=AS_UTF8) from None
    lined = read(text, str(file))
    if lined.errors:
        raise together(lined.errors)
    if not isinstance(lined.value, dict):
        expected = ", ".join(kind.model_fields)
        raise RecipeError(f"{called} is a mapping", where=str(file), expected=expected)
    return lined.value, {place: f"{file}, line {line}" for place, line in lined.lines.items()}


def json_schema() -> dict[str, Any]:
    """The study's JSON schema, with the recipe's in it, for editors."""
    schema = create_model("Study", __base__=StudySettings).model_json_schema()
    recipe = recipe_schema()
    schema.setdefault("$defs", {}).update(recipe.pop("$defs", {}))
    schema["$defs"]["Recipe"] = recipe
    said = schema["properties"]["recipe"].get("description")
    schema["properties"]["recipe"] = {
        "anyOf": [{"type": "string"}, {"$ref": "#/$defs/Recipe"}],
        "description": said,
    }
    return schema


BY_SETTING = ("shared", "vary", "space")
"""Fields with a value for each setting of a recipe: in `shared.train.steps=9` the setting is train.steps."""

P = TypeVar("P", bound=PlanSettings)


def planned(
    kind: type[P],
    called: str,
    values: dict[str, Any],
    overrides: Sequence[str],
    name: str,
    source: str,
    beside: FilePath,
    lines: dict[Path, str],
) -> Planned[P]:
    """The values with overrides on top, as settings of a kind; every fault at once."""
    errors: list[TunesmithError] = []
    for text in overrides:
        try:
            _override(kind, called, values, text, lines)
        except RecipeError as error:
            errors.append(error)

    def where(path: Path) -> str:
        found = (lines[path[:length]] for length in range(len(path), 0, -1) if path[:length] in lines)
        return next(found, source)

    elsewhere = {section: f"recipe.{section}" for section in SECTIONS}
    settings, wrong = parse(kind, values, (), where, called=called, elsewhere=elsewhere)
    errors += wrong
    if settings is None or errors:
        raise together(errors)
    folder = FilePath(settings.folder or os.path.join("runs", name)).expanduser()
    return Planned(settings, name, source, folder.absolute(), beside.absolute(), lines)


def _override(kind: type[PlanSettings], called: str, values: dict[str, Any], text: str, lines: dict[Path, str]) -> None:
    """`key=value` or `test.key=value`; the value is YAML."""
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise RecipeError(f"{text!r} is not an override", where="command line", expected="key=value")
    if path[0] in SECTIONS and path[0] not in kind.model_fields:
        meant = f"shared.{key}"
        raise RecipeError(
            f"{dotted(path)} is not a setting of {called}",
            where="command line",
            notes={"did you mean": meant},
            fix="say what every arm has by shared",
        )
    if path[0] in BY_SETTING and len(path) > 1:
        path = (path[0], ".".join(path[1:]))
    inner = values
    for part in path[:-1]:
        if not isinstance(inner.get(part), dict):
            if part == "recipe":
                fix = f"give it for every run: shared.{text.removeprefix('recipe.')}"
                raise RecipeError("the recipe is a file", where="command line", found=text, fix=fix)
            inner[part] = {}
        inner = inner[part]
    inner[path[-1]] = read_scalar(value)
    for old in [place for place in lines if place[: len(path)] == path]:
        del lines[old]
    lines[path] = "command line"


def baseline_of(study: Study, names: Sequence[str]) -> str:
    """The baseline's name, or an error that says which there are."""
    wanted = study.settings.baseline
    if wanted is None:
        return names[0]
    if wanted in names:
        return wanted
    meant = near(wanted, list(names), {})
    raise RecipeError(
        f"baseline: there is no arm {wanted!r}",
        where=study.where("baseline"),
        notes={"did you mean": meant} if meant else {},
        expected=", ".join(names),
    )
