"""Every key of every record, found by walking the records themselves, and the recipe in which each is tried."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from tunesmith.adapters import METHODS
from tunesmith.recipe import CHOICES, SECTIONS
from tunesmith.settings import Settings

BASE: dict[str, Any] = {
    "model": {"name": "@/model", "dtype": "float32", "device": "cpu"},
    "data": {"train": "@/rows.jsonl", "held_out": 3},
    "adapter": {"r": 2},
    "train": {"steps": 2, "batch_size": 2, "learning_rate": 0.05, "memory_forecast": "off"},
}
ADAPTERS: dict[str, dict[str, Any]] = {
    method: {"method": method, **({"r": 2} if "r" in module.Settings.model_fields else {})}
    for method, module in METHODS.items()
}
OF_KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {},
    "preference": {"data": {"train": "@/pairs.jsonl"}},
    "reward": {"data": {"train": "@/pairs.jsonl"}},
    "classify": {"data": {"train": "@/texts.jsonl"}},
    "distill": {"objective": {"teacher": "@/model"}},
    "policy": {
        "data": {"train": "@/prompts.jsonl"},
        "objective": {"rewards": ["@/mine.py:spread"], "num_generations": 3, "max_completion_length": 4},
    },
}
"""What a recipe of the kind has otherwise than the base."""


def is_fixed(annotation: Any) -> bool:
    """Whether there is one legal value."""
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1


def _nested(annotation: Any, many: bool = False) -> Iterator[tuple[type[Settings], bool]]:
    """The records in an annotation, and whether each is one of many."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation, many
    for inner in get_args(annotation):
        yield from _nested(inner, many or get_origin(annotation) in (tuple, dict))


def keys_of(record: type[Settings], place: str) -> dict[str, Any]:
    """section.key -> annotation, of a record and those in it, each once: where it stands least deep."""
    found: dict[str, Any] = {}
    waiting, known = [(record, place)], {record}
    while waiting:
        own, at = waiting.pop(0)
        for name, field in own.model_fields.items():
            found[f"{at}.{name}".lstrip(".")] = field.annotation
            for nested, many in _nested(field.annotation):
                if nested not in known:
                    known.add(nested)
                    waiting.append((nested, f"{at}.{name}{'[]' if many else ''}"))
    return found


def all_keys() -> dict[str, Any]:
    """Of a recipe: "model.name", "adapter.lora.r", "objective.policy.beta", "data.train[].path" …"""
    found: dict[str, Any] = {}
    for section, record in SECTIONS.items():
        if section in CHOICES:
            for name, module in CHOICES[section].table.items():
                found |= keys_of(module.Settings, f"{section}.{name}")
        else:
            found |= keys_of(record, section)
    return found


def base_of(key: str) -> dict[str, Any]:
    """A recipe in which the key has a place."""
    values = copy.deepcopy(BASE)
    section, name, *_ = key.split(".")
    if section == "adapter":
        values["adapter"] = dict(ADAPTERS[name])
    elif section == "objective":
        for where, own in OF_KINDS[name].items():
            values[where] = values.get(where, {}) | copy.deepcopy(own)
        values["objective"] = values.get("objective", {}) | {"kind": name}
    elif name == "train[]":
        values["data"]["train"] = [{"path": "@/rows.jsonl"}, {"path": "@/more.jsonl"}]
    return values


def place_of(key: str) -> tuple[str | int, ...]:
    """Where the key stands in a recipe's values."""
    section, *rest = key.split(".")
    return within(".".join([section, *(rest[1:] if section in CHOICES else rest)]))


def within(key: str) -> tuple[str | int, ...]:
    """section.key as a path; of a list, its first."""
    parts: list[str | int] = []
    for name in key.split("."):
        parts += [name[:-2], 0] if name.endswith("[]") else [name]
    return tuple(parts)


def put(values: dict[str, Any], place: tuple[str | int, ...], value: Any) -> None:
    inner: Any = values
    for part in place[:-1]:
        inner = inner[part] if isinstance(part, int) else inner.setdefault(part, {})
    inner[place[-1]] = copy.deepcopy(value)


def with_beside(key: str, beside: Mapping[str, Any]) -> dict[str, Any]:
    """The base, with what must stand beside the key: by section.key, or a section in whole."""
    values = base_of(key)
    for other, value in beside.items():
        put(values, within(other), value)
    return values
