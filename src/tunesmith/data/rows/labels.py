"""Rows that are classified: a text or a conversation, and its label or labels.

labelled   {"text": …, "label": …} or {"messages": […], "label": …}; a label is text, a number or true and false.
           {"text": …, "labels": […]} for any number of them; none at all is an empty list
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tunesmith.data.problems import shown
from tunesmith.data.reading.empty_cells import is_filled
from tunesmith.data.rows.beside import tools_of, with_system
from tunesmith.data.rows.messages import Names, Unreadable, read_messages, text_of
from tunesmith.data.types import Conversation, Document, Labelled, Origin


def labelled(row: Mapping[str, Any], origin: Origin, names: Names | None = None) -> Labelled:
    keys = [key for key in ("text", "messages", "conversations") if is_filled(row.get(key))]
    if len(keys) != 1:
        empty = [
            f"{key} is null" if row[key] is None else f"{key} is an empty cell"
            for key in ("text", "messages", "conversations")
            if key in row
        ]
        found = " and ".join(keys or empty) or "no column text, messages or conversations"
        raise Unreadable("what the label is of is not one column", found=found)
    if keys[0] == "text":
        return Labelled(Document(text_of(row, "text"), origin), _labels(row))
    turns = read_messages(row[keys[0]], keys[0], names)
    return Labelled(Conversation(with_system(turns, row), origin, tools_of(row)), _labels(row))


def _labels(row: Mapping[str, Any]) -> tuple[str, ...]:
    there = [key for key in ("label", "labels") if is_filled(row.get(key))]
    if not there and "labels" in row:  # an empty cell of a table
        return ()
    if len(there) != 1:
        raise Unreadable("the row has both label and labels" if there else "the row has no label")
    given = row[there[0]]
    if there[0] == "labels" and isinstance(given, str):  # as a table writes a list
        given = _listed(given)
    many = isinstance(given, list | tuple)
    return tuple(dict.fromkeys(_name(value, there[0]) for value in (given if many else [given])))


def _listed(text: str) -> list[Any]:
    """`["a", "b"]`, or names parted by commas or semicolons; nothing is no label."""
    if text.strip().startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise Unreadable("the column 'labels' begins like a list of JSON, and is none", found=shown(text)) from None
        return list(found)
    return [part for part in re.split(r"[,;|]", text) if part.strip()]


def _name(value: Any, key: str) -> str:
    """A label as its name: 1 and 1.0 are one label, true is `true`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float) or not str(value).strip():
        raise Unreadable(
            f"the column {key!r} must hold text, a number, true or false, or a list of them", found=shown(value)
        )
    return _plain(str(value).strip())


def _plain(name: str) -> str:
    """True and 1.0, as tables write them, are what JSON's true and 1 are."""
    if name in ("True", "False"):
        return name.lower()
    return name.partition(".")[0] if re.fullmatch(r"-?\d+\.0+", name) else name
