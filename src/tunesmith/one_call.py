"""Everything in one call: a model and rows in, a trained adapter and a model that answers out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.mixture import FROM_PYTHON
from tunesmith.data.reading.python_rows import dictionaries
from tunesmith.errors import DataError
from tunesmith.events import Listener
from tunesmith.recipe import from_dict
from tunesmith.run import Trained, train


def tune(
    model: str,
    rows: str | Path | Iterable[Mapping[str, Any]],
    *,
    folder: str | Path | None = None,
    quiet: bool = False,
    listeners: Sequence[Listener] = (),
    **changes: Any,
) -> Trained:
    """One call: a model and rows (or a file of them) in, a trained adapter and a model that answers out.

    `rows`: dictionaries, a pandas DataFrame, a `datasets.Dataset`, a file's path or a hub id. `changes` are settings by
    their full name with the dot as two underscores, or whole sections: `train__steps=100`, `adapter={"r": 16}`.
    Without a budget: three passes. A tenth of the rows (at most 200) is held out.

    RecipeError for settings that do not exist, DataError for rows that cannot be read, ModelError for the model.
    """
    if rows is None:
        expected = "a list of dicts, a DataFrame, a Dataset, a file's path, or a hub id"
        raise DataError("tune() needs rows", expected=expected)
    listed: list[Mapping[str, Any]] | None = None if isinstance(rows, str | Path) else list(dictionaries(rows))
    values: dict[str, Any] = {
        "model": {"name": model},
        "data": {"train": str(rows) if listed is None else FROM_PYTHON},
        "output": {"folder": str(folder or _unused(Path("runs") / time.strftime("tune-%Y%m%d-%H%M%S")))},
    }
    if listed is None or len(listed) >= 20:
        values["data"]["held_out"] = 0.1 if listed is None else min(200, len(listed) // 10)
    for key, value in changes.items():
        section, parted, name = key.partition("__")
        if parted:
            _section(values, section)[name] = value
        elif isinstance(value, Mapping):
            _section(values, section).update(value)
        else:
            values[section] = value  # which no section is: that is said
    resolved = from_dict(values, name="tune", source="tune()")
    return train(resolved, rows=listed, quiet=quiet, listeners=listeners)


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    """What is said of a section so far; what was said and is no section has had its say."""
    if not isinstance(values.get(name), dict):
        values[name] = {}
    section: dict[str, Any] = values[name]
    return section


def _unused(folder: Path) -> Path:
    """`folder`, or where a run of the same second has it already, one with a number behind."""
    names = (folder.with_name(f"{folder.name}-{number}") for number in range(2, 1000))
    return folder if not folder.exists() else next(name for name in names if not name.exists())
