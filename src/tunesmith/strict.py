"""A settings record from a tree of values, or everything that is wrong with the tree, each fault at its line.

pydantic decides what is valid; this file turns its verdicts into sentences, and finds unknown keys at every depth
itself, so that it can say what was probably meant.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import annotated_types
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.notation import Path, dotted, write_inline
from tunesmith.settings import Contradiction, Settings

S = TypeVar("S", bound=Settings)
Where = Callable[[Path], str]
"""The file and line (or "command line") of a path."""

_SECRET = re.compile(r"(hf|hub|auth|access|wandb)?_?(token|api_?key|secret|password|passwd)", re.IGNORECASE)


def parse(
    record: type[S],
    value: Mapping[str, Any],
    path: Path,
    where: Where,
    *,
    called: str,
    elsewhere: Mapping[str, str] | None = None,
) -> tuple[S | None, list[TunesmithError]]:
    """`value` as a `record`, or None and why not. `called` names the record in sentences ("lora", "train");
    `elsewhere` maps bare setting names of other records to their full names, for those put in the wrong place."""
    unknown: dict[Path, TunesmithError] = {}
    known = _without_unknown(record, value, path, where, called, elsewhere or {}, unknown)
    errors = list(unknown.values())
    # What follows from a misspelt key alone (its proper name is missing, a rule finds nothing) is not said again.
    meant = {error.notes.get("did you mean") for error in errors}
    lacking = {place[len(path) : -1] for place in unknown}
    try:
        parsed = record.model_validate_json(json.dumps(known, default=_as_text), strict=True)
    except TypeError as error:
        return None, [*errors, RecipeError(f"{dotted(path)}: {error}", where=where(path))]
    except ValidationError as error:
        details = [
            detail
            for detail in error.errors(include_url=False)
            if not (detail["type"] == "missing" and detail["loc"][-1] in meant)
            and not _leads_to(_place(known, detail), lacking)
        ]
        return None, errors + _told(record, known, path, where, details)
    return (None if errors else parsed), errors


def _leads_to(place: Path, others: set[Path]) -> bool:
    """Whether `place` is one of `others`, or stands above one, as a union does whose other members were tried too."""
    return place in others or any(place == other[: len(place)] for other in others if place)


def _as_text(value: Any) -> str:
    """Paths given from Python are text in a recipe; nothing else is turned into it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if callable(value):
        raise TypeError(
            "a recipe names functions, so that a run can be repeated and resumed: "
            f"write {getattr(value, '__qualname__', 'it')!r} as FILE.py:NAME or MODULE:NAME"
        )
    raise TypeError(f"a {type(value).__name__} is no value for a setting")


def setting_names(record: type[Settings]) -> list[str]:
    """All settings, the record's own letters before those it inherits."""
    own = [name for name in record.__annotations__ if name in record.model_fields]
    return own + [name for name in record.model_fields if name not in own]


def unknown_key(
    key: str, path: Path, where: str, *, called: str, settings: list[str], elsewhere: Mapping[str, str]
) -> RecipeError:
    """The refusal of a key that nobody reads, with what was probably meant."""
    if key == "trust_remote_code":
        return RecipeError(
            f"{dotted(path)}: a file cannot consent to running a model's own code",
            where=where,
            fix="take the line out; read that code, then type --trust-remote-code",
        )
    if _SECRET.fullmatch(key) and not difflib.get_close_matches(key, settings, cutoff=0.75):
        return RecipeError(
            f"{dotted(path)}: secrets are never read from a recipe",
            where=where,
            fix="take it out and log in with the service's own tool (hf auth login, wandb login)",
        )
    notes = {"settings": ", ".join(settings)}
    if nearest := near(key, settings, elsewhere):
        notes["did you mean"] = nearest
    return RecipeError(f"{dotted(path)} is not a setting of {called}", where=where, notes=notes)


def near(key: str, settings: list[str], elsewhere: Mapping[str, str]) -> str | None:
    """The setting that `key` was probably meant to be: misspelt here, at home elsewhere, or shortened."""
    wanted = key.lower().replace("-", "_")
    for cutoff, names in ((0.75, settings), (1.0, list(elsewhere)), (0.6, settings)):
        if match := difflib.get_close_matches(wanted, names, n=1, cutoff=cutoff):
            return match[0] if names is settings else elsewhere[match[0]]
    everything = {name: name for name in settings} | {
        name: elsewhere[name] for name in elsewhere if name not in settings
    }
    for name, full in everything.items():
        if len(wanted) > 1 and wanted == "".join(word[0] for word in name.split("_")):
            return full
    for name, full in everything.items():
        if len(name) > 3 and (name in wanted or (len(wanted) > 3 and wanted in name)):
            return full
    for name, full in everything.items():
        if len(name) > 1 and name in wanted.split("_"):
            return full
    match = difflib.get_close_matches(wanted, list(elsewhere), n=1, cutoff=0.75)
    return elsewhere[match[0]] if match else None


def _first_words(record: type[Settings]) -> dict[str, str]:
    """What a paper's letter stands for: its help text begins with the word ("Rank: …" -> {"rank": "r"})."""
    described = {name: (field.description or "").partition(":")[0] for name, field in record.model_fields.items()}
    return {word.lower(): name for name, word in described.items() if word.isidentifier() and len(name) == 1}


def _without_unknown(
    record: type[Settings],
    value: Mapping[str, Any],
    path: Path,
    where: Where,
    called: str,
    elsewhere: Mapping[str, str],
    unknown: dict[Path, TunesmithError],
) -> dict[str, Any]:
    """`value` less the keys that the record (or a record within it) does not have; each of those joins `unknown`."""
    known: dict[str, Any] = {}
    meant = _first_words(record) | dict(elsewhere)
    for key, inner in value.items():
        here = (*path, key)
        if key not in record.model_fields:
            names = setting_names(record)
            unknown[here] = unknown_key(key, here, where(here), called=called, settings=names, elsewhere=meant)
            continue
        members = list(_members(record.model_fields[key].annotation))
        nested = next((kind for kind in members if _is_record(kind)), None)
        if nested is not None and isinstance(inner, dict):
            inner = _without_unknown(nested, inner, here, where, key, {}, unknown)
        elif (nested := _record_of_items(members)) is not None and isinstance(inner, list):
            inner = [
                _without_unknown(nested, item, (*here, i), where, f"{key}[{i}]", {}, unknown)
                if isinstance(item, dict)
                else item
                for i, item in enumerate(inner)
            ]
        elif (names := _keys_of(members)) and isinstance(inner, dict):
            for odd in [name for name in inner if name not in names]:
                place = (*here, odd)
                unknown[place] = unknown_key(odd, place, where(place), called=key, settings=names, elsewhere={})
            inner = {name: value for name, value in inner.items() if name in names}
        known[key] = inner
    return known


def _record_of_items(members: list[Any]) -> type[Settings] | None:
    """The record that each item of a list is; None where it is none, or no list."""
    items = [get_args(kind)[0] for kind in members if get_origin(kind) is tuple]
    return next((kind for kind in items if _is_record(kind)), None)


def _keys_of(members: list[Any]) -> list[str]:
    """The keys of a mapping that has no others; empty where it takes any."""
    mappings = [get_args(kind)[0] for kind in members if get_origin(kind) is dict]
    return [name for keys in mappings if get_origin(keys) is Literal for name in get_args(keys)]


def _told(
    record: type[Settings], value: dict[str, Any], path: Path, where: Where, found: list[ErrorDetails]
) -> list[TunesmithError]:
    """pydantic's findings as one error per place; of a union, what is wrong with the alternative that was tried."""
    places: dict[Path, list[ErrorDetails]] = {}
    for detail in found:
        places.setdefault(_place(value, detail), []).append(detail)
    told: list[TunesmithError] = []
    for place, details in places.items():
        if any(len(other) > len(place) and other[: len(place)] == place for other in places):
            continue
        chosen = next((d for d in details if d["type"] in ("value_error", "missing")), details[0])
        told.append(_sentence(record, value, place, path, where, chosen))
    return told


def _place(value: Any, detail: ErrorDetails) -> Path:
    """Where in `value` a finding stands: pydantic's location less the names of union members."""
    place: Path = ()
    loc = detail["loc"]
    for index, part in enumerate(loc):
        is_key = isinstance(value, dict) and part in value
        is_item = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if is_key or is_item:
            value = value[part]
            place = (*place, part)
        elif detail["type"] == "missing" and index == len(loc) - 1 and isinstance(part, str):
            place = (*place, part)
    return place


def _sentence(
    record: type[Settings], value: Any, place: Path, path: Path, where: Where, detail: ErrorDetails
) -> TunesmithError:
    full = (*path, *place)
    annotation, limits = _declared(record, place)
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, Contradiction):
        if cause.key and (not place or cause.key != place[-1]):
            full = (*full, cause.key)
        return RecipeError(f"{dotted(full)} {cause.text}", where=where(full), fix=cause.fix)
    if detail["type"] == "missing" and isinstance(detail["loc"][-1], str):
        return RecipeError(
            f"{dotted(full)} is missing", where=where(full[:-1]), expected=_described(annotation, limits)
        )
    for part in place:
        value = value[part]
    members = list(_members(annotation))
    choices = [choice for kind in members if get_origin(kind) is Literal for choice in get_args(kind)]
    notes: dict[str, str] = {}
    fix = None
    if isinstance(value, str):
        if match := difflib.get_close_matches(value.lower(), [str(c) for c in choices], n=1, cutoff=0.5):
            notes["did you mean"] = match[0]
        elif {int, float} & set(members) and re.fullmatch(r"[-+\d.eE]+", value):
            fix = "take the quotes off"
        elif float in members and re.fullmatch(r"[-+]?\d+,\d+", value):
            fix = f"write {value.replace(',', '.')}"
    elif str in members and not {int, float} & set(members) and isinstance(value, int | float):
        fix = "put it in quotes, to say that it is text"
    elif int in members and isinstance(value, float) and value.is_integer():
        fix = f"write {value:.0f}"
    return RecipeError(
        f"{dotted(full)} cannot be {_shown(value)}",
        where=where(full),
        expected=_described(annotation, limits),
        fix=fix,
        notes=notes,
    )


def _shown(value: Any) -> str:
    if isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False)
        return value if len(value) < 64 else value[:60] + " …"
    text = write_inline(value)
    return text if len(text) < 64 else text[:60] + " …"


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)


def _members(annotation: Any) -> Iterator[Any]:
    """The alternatives of a union, without their constraints."""
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _declared(record: type[Settings], place: Path) -> tuple[Any, list[Any]]:
    """The annotation at a place within a record, and the limits that stand beside it."""
    annotation: Any = record
    limits: list[Any] = []
    for part in place:
        member = next((m for m in _members(annotation) if _is_record(m)), None)
        if member is not None and part in member.model_fields:
            annotation, limits = member.model_fields[part].annotation, list(member.model_fields[part].metadata)
            continue
        limits = []
        for kind in _members(annotation):
            inner = get_args(kind)
            if get_origin(kind) is tuple and isinstance(part, int):
                annotation = inner[0] if inner[-1] is Ellipsis else inner[min(part, len(inner) - 1)]
            elif get_origin(kind) is dict:
                annotation = inner[1]
    return annotation, limits


def _described(annotation: Any, limits: list[Any]) -> str:
    """A type in words: `int > 0 or None` is "a whole number above 0, or null"."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _described(inner, [*limits, *more])
    if get_origin(annotation) in (Union, types.UnionType):
        words = list(dict.fromkeys(_described(member, limits) for member in get_args(annotation)))
        return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f", or {words[-1]}"
    if get_origin(annotation) is Literal:
        words = [str(choice) for choice in get_args(annotation)]
        return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" or {words[-1]}"
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)
        if inner[-1] is Ellipsis:
            return f"a list, each {_described(inner[0], [])}"
        return f"a list of {len(inner)}: " + "; ".join(_described(kind, []) for kind in inner)
    if get_origin(annotation) is dict:
        return f"a mapping of names to {_described(get_args(annotation)[1], [])}"
    if _is_record(annotation):
        return "a mapping with " + ", ".join(setting_names(annotation))
    words_by_type = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    word = words_by_type.get(annotation, str(annotation))
    return word + _limited(limits) if annotation in (int, float) else word


def _limited(limits: list[Any]) -> str:
    words = []
    for limit in _flat(limits):
        for kind, text in (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most")):
            bound = getattr(limit, kind, None)
            if bound is not None:
                words.append(f"{text} {bound:g}")
    return " " + " and ".join(words) if words else ""


def _flat(limits: list[Any]) -> Iterator[Any]:
    for limit in limits:
        if isinstance(limit, annotated_types.GroupedMetadata):
            yield from limit
        else:
            yield from getattr(limit, "metadata", None) or [limit]
