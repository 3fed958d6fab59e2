"""A recipe from a file of ours or of another tool: `load` finds out which, and says what became of each key.

    load("their.yml", ["base_model=my/model", "train.steps=20"])

Overrides may be in the other tool's words, which change its file before it is read, or in ours, which change the
recipe.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from tunesmith.dialects import DIALECTS
from tunesmith.dialects.base import Dialect, Entry, Fate, Said
from tunesmith.errors import RecipeError, TunesmithError, together
from tunesmith.notation import Path, dotted, read_scalar
from tunesmith.recipe import CHOICES, SECTIONS, Change, Resolved, from_dict, load_lined, read_file
from tunesmith.train.settings import BUDGETS


@dataclass(frozen=True)
class Translation:
    """What another tool's file came to, key by key."""

    dialect: str
    called: str
    source: str
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]

    def of(self, fate: Fate) -> list[Entry]:
        return [entry for entry in self.entries if entry.fate is fate]

    @property
    def summary(self) -> list[str]:
        """A few lines for the beginning of a run: nothing that was left out is missing from them."""
        empty = [entry for entry in self.of(Fate.IDLE) if entry.text == "empty"]
        idle = [entry for entry in self.of(Fate.IDLE) if entry.text != "empty"]
        lines = [
            f"{self.source} is a file of {self.called}: {len(self.of(Fate.CARRIED))} keys carried over, "
            f"{len(idle)} without effect here, {len(empty)} empty"
        ]
        by_reason: dict[str, list[str]] = {}
        for entry in idle:
            by_reason.setdefault(entry.text, []).append(entry.key)
        lines += [f"  without effect: {', '.join(keys)} ({why})" for why, keys in by_reason.items()]
        if empty:
            lines.append(f"  empty: {', '.join(entry.key for entry in empty)}")
        return lines + [f"  {note}" for note in self.notes]

    @property
    def table(self) -> list[str]:
        """Every key with its fate, by fate."""
        width = min(max((len(entry.key) for entry in self.entries), default=0), 40)
        lines = []
        for fate in Fate:
            entries = self.of(fate)
            if entries:
                lines.append(f"{fate.value} ({len(entries)})")
                lines += [f"  {entry.key:<{width}}  {entry.text}" for entry in entries]
        return lines + [f"note: {note}" for note in self.notes]


@dataclass(frozen=True)
class Read:
    """A recipe, and how it was translated where its file is another tool's."""

    resolved: Resolved
    translation: Translation | None = None


def load(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    strict: bool = False,
    changes: Sequence[Change] = (),
) -> Resolved:
    """The recipe in a file of ours or of another tool, or in a run folder, with `section.key=value` overrides on top.

    `strict`: a key of another tool that has no effect here is refused.
    """
    return load_any(path, overrides, strict=strict, changes=changes).resolved


def converted(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, strict: bool = False
) -> tuple[str, list[str]]:
    """A recipe of ours from another tool's file, as YAML, and what became of each of its keys."""
    made = load_any(path, overrides, strict=strict)
    if made.translation is None:
        known = ", ".join(dialect.CALLED for dialect in DIALECTS.values())
        fix = f"train it as it is: tunesmith train {path}"
        raise RecipeError("this is a recipe already", where=str(path), expected=f"a file of {known}", fix=fix)
    return made.resolved.given, made.translation.table


def load_any(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    strict: bool = False,
    changes: Sequence[Change] = (),
) -> Read:
    """The same, with the translation."""
    file, lined = read_file(path)
    values = lined.value if isinstance(lined.value, dict) else {}
    typed = {key: True for key in (text.partition("=")[0].strip() for text in overrides) if key.isidentifier()}
    name = recognise({**typed, **values} if values else values, str(file))
    if name is None:
        return Read(load_lined(file, lined, overrides, changes=changes))
    if lined.errors:
        raise together(lined.errors)
    lines = {place: f"{file}, line {line}" for place, line in lined.lines.items()}
    return translated(name, values, lines, overrides, file, strict=strict, changes=changes)


def recognise(values: Mapping[str, Any], where: str) -> str | None:
    """The tool that a file's keys belong to; None where they are ours, or nobody's."""
    if not values or set(values) <= set(SECTIONS):
        return None
    mine = [name for name, dialect in DIALECTS.items() if dialect.is_mine(values)]
    if len(mine) > 1:
        said = " or ".join(DIALECTS[name].CALLED for name in mine)
        found = ", ".join(list(values)[:12])
        fix = "take out the keys of the other tool"
        raise RecipeError(f"the file could be one of {said}", where=where, found=f"keys {found}", fix=fix)
    return mine[0] if mine else None


def translated(
    name: str,
    values: Mapping[str, Any],
    lines: Mapping[Path, str],
    overrides: Sequence[str],
    file: FilePath,
    *,
    strict: bool = False,
    changes: Sequence[Change] = (),
) -> Read:
    """The recipe that another tool's `values` come to."""
    dialect = DIALECTS[name]
    theirs, lines = copy.deepcopy(dict(values)), dict(lines)
    errors: list[TunesmithError] = []
    ours = [text for text in overrides if not _set(text, theirs, lines, dialect, errors)]

    def where(path: Path) -> str:
        return next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), str(file))

    said = Said(theirs, where, dialect)
    dialect.translate(said)
    entries = said.finish()
    errors += said.ledger.errors
    if strict:
        errors += [
            RecipeError(f"{entry.key} has no effect here: {entry.text}", where=entry.where, fix="take it out")
            for entry in entries
            if entry.fate is Fate.IDLE
        ]
    if errors:
        raise together(errors)
    given = {setting for override in ours for setting in _give_way(override, said)}
    entries = [_given_instead(entry, given) for entry in entries]
    translation = Translation(name, dialect.CALLED, str(file), tuple(entries), tuple(said.ledger.notes))
    resolved = from_dict(
        _tree(said),
        ours,
        name=file.stem,
        source=str(file),
        sources={setting: source for setting, (_, source) in said.ledger.settings.items()},
        folder=file.parent,
        changes=changes,
    )
    return Read(replace(resolved, notes=tuple(translation.summary)), translation)


_ONE_OF = (tuple(f"train.{name}" for name in BUDGETS), ("train.batch_size", "train.batch_tokens"))
"""Settings of which a recipe has one."""


def _give_way(override: str, said: Said) -> list[str]:
    """What the file says gives way to what is typed in its place: all budgets to a budget, all batches to a batch, to
    another method or objective the settings that it has not. Gives their names."""
    typed, _, value = (part.strip() for part in override.partition("="))
    gone = [name for names in _ONE_OF if typed in names for name in names]
    section, _, key = typed.partition(".")
    choice = CHOICES.get(section)
    if choice is not None and key == choice.key and value in choice.table:
        known = choice.table[value].Settings.model_fields
        gone += [".".join(map(str, own)) for own in said.ledger.settings if own[0] == section and own[1] not in known]
    for name in gone:
        said.ledger.settings.pop(tuple(name.split(".")), None)
    return [typed, *gone]


def _given_instead(entry: Entry, given: set[str]) -> Entry:
    setting = entry.text.partition(" = ")[0]
    if entry.fate is Fate.CARRIED and setting in given:
        return replace(entry, text=f"{setting}: what is typed on the command line goes before it")
    return entry


def _tree(said: Said) -> dict[str, Any]:
    tree: dict[str, Any] = {"model": {}, "data": {}}
    for setting, (value, _) in said.ledger.settings.items():
        inner = tree
        for part in setting[:-1]:
            inner = inner.setdefault(str(part), {})
        inner[str(setting[-1])] = value
    return tree


def _set(
    text: str, values: dict[str, Any], lines: dict[Path, str], dialect: Dialect, errors: list[TunesmithError]
) -> bool:
    """Apply an override that is in the dialect's words; False where it is in ours."""
    key, equals, value = text.partition("=")
    path = parse_key(key.strip().removeprefix("--"))
    if not equals or (len(path) > 1 and path[0] in SECTIONS and not _is_known(path, dialect)):
        return False
    try:
        _store(values, path, read_scalar(value), lines)
    except RecipeError as error:
        errors.append(error.at("command line"))
    return True


def _is_known(path: Path, dialect: Dialect) -> bool:
    return re.sub(r"\[\d+\]", "[]", dotted(path)) in dialect.KEYS


def parse_key(key: str) -> Path:
    """datasets[0].path and datasets.0.path -> ("datasets", 0, "path")."""
    parts = [part for part in re.split(r"[.\[\]]+", key) if part]
    return tuple(int(part) if part.isdigit() else part for part in parts) or (key,)


def _store(values: dict[str, Any], path: Path, value: Any, lines: dict[Path, str]) -> None:
    """Put `value` at `path`; an entry that stands alone in its list needs no number."""
    inner: Any = values
    done: Path = ()
    for place, part in enumerate(path):
        if isinstance(inner, list) and isinstance(part, str):
            if len(inner) != 1 or not isinstance(inner[0], dict):
                expected = dotted((*done, 0, *path[place:]))
                found = f"{len(inner)} entries"
                fix = f"number the entry, from 0 on: {expected}=…"
                raise RecipeError(f"{dotted(path)} does not say which entry is meant", found=found, fix=fix)
            inner, done = inner[0], (*done, 0)
        if isinstance(inner, list) and not (isinstance(part, int) and part < len(inner)):
            fix = (
                f"count from 0: the last is {dotted((*done, len(inner) - 1))}" if inner else "add the entry to the file"
            )
            raise RecipeError(f"{dotted((*done, part))} is not there", found=f"{len(inner)} entries", fix=fix)
        done = (*done, part)
        at: Any = part
        if place == len(path) - 1:
            inner[at] = value
            break
        child = inner[at] if isinstance(inner, list) else inner.get(at)
        if not isinstance(child, dict | list):
            child = inner[at] = {}
        inner = child
    for old in [known for known in lines if known[: len(done)] == done]:
        del lines[old]
    lines[done] = "command line"
