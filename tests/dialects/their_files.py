"""Files of another tool, written for a test, and what became of one of their keys."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.dialects.base import Entry
from tunesmith.dialects.read import Read, load_any
from tunesmith.notation import write
from tunesmith.recipe import load as load_recipe


def file(folder: Path, values: dict[str, Any], name: str = "their.yaml") -> Path:
    """`values` as YAML; a key that is None is left out. Beside it is a file of rows."""
    path = folder / name
    (folder / "rows.jsonl").touch()
    path.write_text(write({key: value for key, value in values.items() if value is not None}))
    return path


def with_key(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with a key of the table set: `data.init_args.seed`, or `datasets[].path` in the first entry."""
    made = copy.deepcopy(values)
    *above, last = key.split(".")
    inner = made
    for part in above:
        name = part.removesuffix("[]")
        if not isinstance(inner.get(name), dict | list):
            inner[name] = [{}] if part.endswith("[]") else {}
        inner = inner[name][0] if part.endswith("[]") else inner[name]
    inner[last] = value
    return made


def mixtures(
    base: dict[str, Any], changes: dict[str, tuple[Any, dict[str, Any]]], count: int = 100
) -> Iterator[dict[str, Any]]:
    """Files with a few of the keys at once, whatever they make of each other; the same each time."""
    drawn = random.Random(0)
    for _ in range(count):
        values = base
        for key in drawn.sample(list(changes), 3):
            value, beside = changes[key]
            values = {**values, **beside}
            if key.split(".")[0] not in values or "." not in key or isinstance(values[key.split(".")[0]], dict):
                values = with_key(values, key, drawn.choice([value, value, False, 3]))
        yield values


def recipe(path: Path) -> dict[str, Any]:
    return load_any(path).resolved.recipe.model_dump(mode="json")


def entry_of(read: Read, key: str) -> Entry:
    """What became of a key of the table, in the first entry where it is of a list."""
    assert read.translation is not None
    return {entry.key.replace("[0]", "[]"): entry for entry in read.translation.entries}[key]


def survives(path: Path) -> None:
    """What is converted, loaded and resolved again is the same recipe."""
    first = load_any(path).resolved
    ours = path.with_name("ours.yaml")
    ours.write_text(first.given)
    assert load_recipe(ours).recipe.model_dump() == first.recipe.model_dump()
