"""A recipe: YAML and overrides to one frozen record, checked whole before anything is loaded.

    load("recipes/sql.yaml", ["train.steps=60"]) -> Resolved: the Recipe, and where each of its values came from

Every fault of the file is reported at once, each with its line. Nothing unknown is let through, at any depth.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath
from typing import Annotated, Any, Self, Union

from pydantic import Field, SerializeAsAny, ValidationError, create_model, model_validator

from tunesmith.adapters import METHODS
from tunesmith.adapters.settings import AdapterSettings
from tunesmith.data.settings import DataSettings
from tunesmith.data.types import Row
from tunesmith.errors import RecipeError, TunesmithError, together
from tunesmith.models.settings import ModelSettings
from tunesmith.notation import Lined, Path, read, read_scalar, write_inline
from tunesmith.objectives import OBJECTIVES
from tunesmith.objectives.policy_losses import PRESETS
from tunesmith.objectives.settings import ObjectiveSettings
from tunesmith.recipe_paths import Paths
from tunesmith.recipe_rules import RULES, refuse_idle
from tunesmith.record import OutputSettings
from tunesmith.settings import Settings
from tunesmith.strict import near, parse, setting_names, unknown_key
from tunesmith.train.settings import TrainSettings

DEFAULT_METHOD = "lora"
DEFAULT_OBJECTIVE = "sft"


class Recipe(Settings):
    """One training run in full."""

    model: ModelSettings
    data: DataSettings
    adapter: SerializeAsAny[AdapterSettings] = Field(default_factory=lambda: METHODS[DEFAULT_METHOD].Settings())
    objective: SerializeAsAny[ObjectiveSettings] = Field(
        default_factory=lambda: OBJECTIVES[DEFAULT_OBJECTIVE].Settings()
    )
    train: TrainSettings = TrainSettings()
    output: OutputSettings = OutputSettings()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        for rule in RULES:
            rule(self)
        return self

    @property
    def takes(self) -> tuple[type[Row], ...]:
        """The kinds of rows that its objective learns from."""
        kinds: tuple[type[Row], ...] = self.offered.takes(self.objective)
        return kinds

    @property
    def offered(self) -> Any:
        """The module of its objective (objectives/__init__.py)."""
        return OBJECTIVES[self.objective.kind]  # type: ignore[attr-defined]

    def explicit(self) -> dict[str, Any]:
        """The settings that were given, without those left at their defaults, as plain values."""
        return {name: section for name, section in self.model_dump(mode="json", exclude_unset=True).items() if section}

    def with_changes(self, changes: Mapping[str, Any]) -> Recipe:
        """A recipe that differs in some settings: {"train.learning_rate": 1e-3}. The same checks apply."""
        tree = _Tree(self.explicit(), {}, "recipe")
        for key, value in changes.items():
            tree.set(_split(key, "changes"), value, "changes")
        recipe = tree.recipe()
        refuse_idle(recipe, tree.where)
        return recipe


SECTIONS: dict[str, type[Settings]] = {
    "model": ModelSettings,
    "data": DataSettings,
    "adapter": AdapterSettings,
    "objective": ObjectiveSettings,
    "train": TrainSettings,
    "output": OutputSettings,
}


@dataclass(frozen=True)
class Choice:
    """A section whose record depends on one of its settings."""

    key: str
    table: Mapping[str, Any]
    """By that setting's value, the module that offers the record as `Settings`."""
    default: str
    called: str


CHOICES = {
    "adapter": Choice("method", METHODS, DEFAULT_METHOD, "method"),
    "objective": Choice("kind", OBJECTIVES, DEFAULT_OBJECTIVE, "objective"),
}


@dataclass(frozen=True)
class Resolved:
    """A recipe, where each value came from ("train.steps" -> "recipes/sql.yaml, line 9"), and its name."""

    recipe: Recipe
    provenance: dict[str, str]
    name: str
    source: str
    notes: tuple[str, ...] = ()
    """What to say before the run: of another tool's file, what became of its keys."""

    @property
    def folder(self) -> FilePath:
        """The run folder."""
        return FilePath(self.recipe.output.folder or os.path.join("runs", self.name)).expanduser()

    @cached_property
    def plain(self) -> dict[str, dict[str, Any]]:
        """Every setting, defaults too, as plain values; reading it back gives the same recipe."""
        plain: dict[str, dict[str, Any]] = self.recipe.model_dump(mode="json")
        plain["output"]["folder"] = str(self.folder.absolute())
        return plain

    @property
    def yaml(self) -> str:
        """`plain` as YAML, each line with where its value came from."""
        return self._written(f"# resolved from {self.source}", self.plain)

    @property
    def given(self) -> str:
        """The settings that are not at their defaults, as YAML, each line with where its value came from."""
        given = {
            section: {key: value for key, value in settings.items() if self.provenance[f"{section}.{key}"] != "default"}
            for section, settings in self.recipe.explicit().items()
        }
        return self._written(f"# from {self.source}", {section: keys for section, keys in given.items() if keys})

    def _written(self, header: str, sections: Mapping[str, Mapping[str, Any]]) -> str:
        lines = [header]
        for section, settings in sections.items():
            lines += ["", f"{section}:"]
            written = {key: f"  {key}: {write_inline(value)}" for key, value in settings.items()}
            column = min(max(map(len, written.values())), 56)
            for key, text in written.items():
                lines.append(f"{text:<{column}}  # {self.provenance[f'{section}.{key}']}")
        return "\n".join(lines) + "\n"


Change = tuple[str, Any, str]
"""A setting on top of a recipe's: "section.key" (or a section, replaced whole), its value, and where it was said."""


def load(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, past: bool = False, changes: Sequence[Change] = ()
) -> Resolved:
    """The recipe in a YAML file (or in a run folder), with `changes`, then `section.key=value` overrides on top.

    `past`: of a run that was, whose files may be gone or elsewhere by now; they are not looked for.
    """
    return load_lined(*read_file(path), overrides, past=past, changes=changes)


def read_file(path: str | os.PathLike[str]) -> tuple[FilePath, Lined]:
    """A YAML file, or that of a run folder, with the lines of its values."""
    file = FilePath(path)
    if file.is_dir():
        file = file / "recipe.yaml"
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}", fix=_recipes_beside(file)) from None
    except UnicodeDecodeError as error:
        raise RecipeError("is not text in UTF-8", where=str(file), found=str(error), fix="save it as UTF-8") from None
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=str(file), fix="name a file of YAML") from None
    return file, read(text, str(file))


def load_lined(
    file: FilePath, lined: Lined, overrides: Sequence[str] = (), *, past: bool = False, changes: Sequence[Change] = ()
) -> Resolved:
    """`load`, of a file that was read."""
    if lined.value is not None and not isinstance(lined.value, dict):
        what, fix = f"a recipe is a mapping of {', '.join(SECTIONS)}", "write model: and, further in below it, name: …"
        lined.errors.append(RecipeError(what, where=str(file), fix=fix))
        lined.value = None
    if lined.errors and lined.value is None:
        raise together(lined.errors)
    sources = {place: f"{file}, line {line}" for place, line in lined.lines.items()}
    name = file.absolute().parent.name if file.stem == "recipe" else file.stem
    tree = _Tree(lined.value or {}, sources, str(file), lined.errors)
    if file.name == "recipe.yaml" and (file.parent / "provenance.json").is_file():
        tree.stand_in(file.absolute().parent)
    return _resolve(tree, overrides, name, file.parent, past, changes)


def from_dict(
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    name: str = "run",
    source: str = "recipe",
    sources: Mapping[Path, str] | None = None,
    folder: str | os.PathLike[str] = "",
    changes: Sequence[Change] = (),
) -> Resolved:
    """The recipe in plain nested values, with `changes`, then overrides on top; relative paths start at `folder`.

    `sources`: where each value was said, where it was not all said in `source`.
    """
    return _resolve(_Tree(values, dict(sources or {}), source), overrides, name, FilePath(folder), changes=changes)


def json_schema() -> dict[str, Any]:
    """The recipe's JSON schema, every method's and objective's record in it, for editors."""
    fields: dict[str, Any] = {}
    for section, choice in CHOICES.items():
        records: Any = tuple(module.Settings for module in choice.table.values())
        union = Annotated[Union[records], Field(discriminator=choice.key)]  # noqa: UP007
        fields[section] = (union, choice.table[choice.default].Settings())
    whole = create_model("Recipe", __base__=Recipe, **fields)
    return whole.model_json_schema()


def _recipes_beside(file: FilePath) -> str:
    folders = [folder for folder in (file.parent, FilePath("recipes")) if folder.is_dir()]
    found = sorted({str(recipe) for folder in folders for recipe in folder.glob("*.y*ml")})
    return "there is " + ", ".join(found[:8]) if found else "name a YAML file"


def _resolve(
    tree: _Tree,
    overrides: Sequence[str],
    name: str,
    folder: FilePath,
    past: bool = False,
    changes: Sequence[Change] = (),
) -> Resolved:
    for change in changes:
        tree.change(*change)
    for text in overrides:
        tree.override(text)
    recipe = tree.recipe()
    if not past:
        recipe = recipe.model_copy(
            update=Paths(tree.where, folder).absolute(recipe.model, recipe.data, recipe.objective)
        )
        refuse_idle(recipe, tree.where)
    provenance = {
        f"{section}.{key}": tree.provenance((section, key))
        for section, settings in recipe.model_dump().items()
        for key in settings
    }
    return Resolved(recipe, provenance, recipe.output.name or name, tree.source)


def _split(key: str, where: str) -> Path:
    """data.held_out.share -> ("data", "held_out", "share")."""
    parts = tuple(part.strip() for part in key.split("."))
    if len(parts) < 2 or not all(parts):
        meant = None if key in SECTIONS else near(key, [], _elsewhere(_records({}), ""))
        notes = {"did you mean": meant} if meant else {}
        expected = f"{key}.key" if key in SECTIONS else "section.key"
        raise RecipeError(f"{key!r} does not name a setting", where=where, expected=expected, notes=notes)
    return parts


class _Tree:
    """The values of a recipe before they are a Recipe, and where each came from."""

    def __init__(
        self, values: Mapping[str, Any], sources: dict[Path, str], source: str, errors: Sequence[TunesmithError] = ()
    ) -> None:
        self.values: dict[str, Any] = _copied(values)
        self.sources, self.source, self.errors = dict(sources), source, list(errors)

    def override(self, text: str) -> None:
        """`section.key=value`; the value is YAML, and none at all is null."""
        key, equals, value = text.partition("=")
        try:
            if not equals:
                expected = "section.key=value"
                raise RecipeError(f"{text!r} is not an override", where="command line", expected=expected)
            self.set(_split(key, "command line"), read_scalar(value), "command line")
        except RecipeError as error:
            self.errors.append(error)

    def change(self, key: str, value: Any, source: str) -> None:
        """`key` is section.key, or a section that is replaced whole."""
        try:
            path = (key,) if key in SECTIONS else _split(key, source)
            if len(path) == 1 and not isinstance(value, Mapping):
                raise RecipeError(f"{key} is a section", where=source, expected=f"a mapping, or {key}.key")
            self.set(path, _copied(value), source)
        except RecipeError as error:
            self.errors.append(error)

    def set(self, path: Path, value: Any, source: str) -> None:
        inner = self.values
        for depth, part in enumerate(path[:-1], 1):
            if not isinstance(inner.get(str(part)), dict):
                inner[str(part)] = {}
                self.sources.pop(path[:depth], None)
            inner = inner[str(part)]
        inner[str(path[-1])] = value
        for old in [place for place in self.sources if place[: len(path)] == path]:
            del self.sources[old]
        self.sources[path] = source

    def stand_in(self, folder: FilePath) -> None:
        """The recipe is a run's own: its run is where it lies, also after it was moved."""
        output = self.values.get("output")
        written = output.get("folder") if isinstance(output, dict) else None
        if isinstance(written, str) and os.path.realpath(written) != os.path.realpath(folder):
            self.set(("output", "folder"), str(folder), "where the run lies")

    def where(self, path: Path) -> str:
        """The nearest place with a known line."""
        if len(path) > 1 and path not in self.sources:
            below = {source for place, source in self.sources.items() if place[: len(path)] == path}
            if len(below) == 1:
                return below.pop()
        for length in range(len(path), 0, -1):
            if path[:length] in self.sources:
                return self.sources[path[:length]]
        return self.source

    def provenance(self, path: Path) -> str:
        section, key = str(path[0]), path[1]
        if key not in (self.values.get(section) or {}):
            return "default"
        within = (place for place in self.sources if place[:2] == path)
        of_keys = dict.fromkeys(self.sources[place] for place in within if isinstance(place[-1], str))
        return "; ".join(of_keys) or self.source

    def recipe(self) -> Recipe:
        """The record, or every fault of the tree in one error."""
        errors = self.errors
        sections: dict[str, Settings] = {}
        self._follow()
        chosen = {section: self._chosen(section) for section in CHOICES}
        records = _records({section: value for section, value in chosen.items() if value is not None})
        for name, value in self.values.items():
            elsewhere = _elsewhere(records, name)
            if name not in SECTIONS:
                names = list(SECTIONS)
                where = self.where((name,))
                errors.append(unknown_key(name, (name,), where, called="a recipe", settings=names, elsewhere=elsewhere))
            elif value is not None and not isinstance(value, dict):
                expected = "a mapping with " + ", ".join(setting_names(records[name]))
                errors.append(RecipeError(f"{name} is not a mapping", where=self.where((name,)), expected=expected))
            elif chosen.get(name, "") is not None:
                called = chosen.get(name) or name
                parsed, wrong = parse(
                    records[name], value or {}, (name,), self.where, called=called, elsewhere=elsewhere
                )
                errors += wrong
                if parsed is not None:
                    sections[name] = parsed
        for name in ("model", "data"):
            if name not in self.values:
                key = "name" if name == "model" else "train"
                what, fix = f"{name}.{key} is missing", f"write {name}: with {key}: below it, or type {name}.{key}=…"
                errors.append(RecipeError(what, where=self.source, expected=f"a {name} section", fix=fix))
        if errors:
            raise together(errors)
        rate = CHOICES["objective"].table[str(chosen["objective"])].LEARNING_RATE
        sections["train"] = _or_else(sections.get("train", TrainSettings()), {"learning_rate": rate})
        try:
            return Recipe.model_validate(sections)
        except ValidationError as error:
            raise together([self._across(detail) for detail in error.errors()]) from None

    def _across(self, detail: Any) -> RecipeError:
        """A rule between sections, at the line of the setting that it names."""
        cause = detail["ctx"]["error"]
        return RecipeError(f"{cause.key} {cause.text}", where=self.where(_split(cause.key, "recipe")), fix=cause.fix)

    def _follow(self) -> None:
        """Settings of the adapter that the objective's stand for, where they are not given."""
        objective, adapter = self.values.get("objective"), self.values.get("adapter") or {}
        if not isinstance(objective, dict) or not isinstance(adapter, dict):
            return
        offered = CHOICES["objective"].table.get(str(objective.get("kind", DEFAULT_OBJECTIVE)))
        for key, value in getattr(offered, "adapter_of", lambda *_: {})(objective, adapter).items():
            self.set(("adapter", key), value, self.where(("objective",)))

    def _chosen(self, section: str) -> str | None:
        """The adapter's method, the objective's kind; None, with an error noted, where there is no such thing."""
        choice, values = CHOICES[section], self.values.get(section)
        value = values.get(choice.key, choice.default) if isinstance(values, dict) else choice.default
        if isinstance(value, str) and value in choice.table:
            return value
        meant = near(str(value), list(choice.table), {}) or _ALSO_CALLED.get(str(value).lower())
        self.errors.append(
            RecipeError(
                f"{section}.{choice.key}: there is no {choice.called} {value!r}",
                where=self.where((section, choice.key)),
                notes={f"{choice.called}s": ", ".join(choice.table)} | ({"did you mean": meant} if meant else {}),
            )
        )
        return None


_ALSO_CALLED = {
    **{name: f"policy, with preset: {name}" for name in PRESETS},
    "dpo": "preference",
    "classification": "classify",
    "gkd": "distill",
    "distillation": "distill",
    "reward_model": "reward",
    "ipo": "preference, with loss: ipo_mean or ipo_sum",
    **{loss: f"preference, with loss: {loss}" for loss in ("kto", "orpo", "cpo", "simpo")},
}
"""What people call an objective otherwise."""


def _or_else(record: Settings, defaults: Mapping[str, Any]) -> Settings:
    """`record` with other defaults: what was not given still counts as not given."""
    missing = {name: value for name, value in defaults.items() if name not in record.model_fields_set}
    made = record.model_copy(update=missing)
    made.model_fields_set.difference_update(missing)
    return made


def _copied(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _copied(value) for key, value in values.items()}
    return [_copied(value) for value in values] if isinstance(values, list | tuple) else values


def _records(chosen: Mapping[str, str]) -> dict[str, type[Settings]]:
    """The record of each section, where `chosen` says which method and which objective; else the defaults'."""
    of_choices = {name: c.table[chosen.get(name, c.default)].Settings for name, c in CHOICES.items()}
    return SECTIONS | of_choices


def _elsewhere(records: Mapping[str, type[Settings]], section: str) -> dict[str, str]:
    """Bare name -> full name, for the settings of all other sections."""
    return {key: f"{name}.{key}" for name in SECTIONS if name != section for key in setting_names(records[name])}
