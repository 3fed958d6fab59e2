"""Rows that are classified: a text or a conversation, and its label or labels.

labelled   {"text": …, "label": …} or {"messages": […], "label": …}; a label is text, a number or true and false.
           {"text": …, "labels": […]} for any number of them; none at all is an empty list
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.messages import Unreadable, read_messages, read_tools, text_of
from tunesmith.data.problems import shown
from tunesmith.data.types import Conversation, Document, Labelled, Message, Origin


def labelled(row: Mapping[str, Any], origin: Origin) -> Labelled:
    keys = [key for key in ("text", "messages", "conversations") if row.get(key) is not None]
    if len(keys) != 1:
        found = " and ".join(keys) if keys else "no column text, messages or conversations"
        raise Unreadable("what the label is of is not one column", found=found)
    if keys[0] == "text":
        return Labelled(Document(text_of(row, "text"), origin), _labels(row))
    turns = read_messages(row[keys[0]], keys[0])
    if row.get("system") not in (None, ""):
        turns = (Message("system", text_of(row, "system")), *turns)
    return Labelled(Conversation(turns, origin, read_tools(row.get("tools"))), _labels(row))


def _labels(row: Mapping[str, Any]) -> tuple[str, ...]:
    there = [key for key in ("label", "labels") if row.get(key) is not None]
    if len(there) != 1:
        raise Unreadable("the row has both label and labels" if there else "the row has no label")
    given = row[there[0]]
    many = isinstance(given, list | tuple)
    return tuple(dict.fromkeys(_name(value, there[0]) for value in (given if many else [given])))


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
    return str(value).strip()
