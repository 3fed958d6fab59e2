"""What stands beside the turns of a row: its system turn, and the tools that it may call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.problems import shown
from tunesmith.data.reading.empty_cells import is_filled
from tunesmith.data.rows.messages import Unreadable, read_tools, text_of
from tunesmith.data.types import Message

RawColumns = Mapping[str, Any]
Tools = tuple[dict[str, Any], ...]

SYSTEMS = ("system", "system_prompt")
TOOLS = ("tools", "functions")
"""OpenAI's older word stands last."""


def one_of(row: RawColumns, names: Sequence[str]) -> str:
    """The text of the one of these columns that holds any; of none, nothing. `Unreadable` where two do."""
    name = _one_filled(row, names)
    return text_of(row, name) if name else ""


def _one_filled(row: RawColumns, names: Sequence[str]) -> str | None:
    there = [name for name in names if row.get(name) not in (None, "")]
    if len(there) > 1:
        fix = (
            f"have one of them not read: data.columns={{{there[1]}: null}}; or word the rows by a template, data.format"
        )
        raise Unreadable(f"the row has both {there[0]} and {there[1]}", fix=fix)
    return there[0] if there else None


def with_system(turns: tuple[Message, ...], row: RawColumns) -> tuple[Message, ...]:
    """The turns behind the row's system turn, where it has one in a column; no turns stay none."""
    name = _one_filled(row, SYSTEMS)
    if name is None or not turns:
        return turns
    said = text_of(row, name)
    if turns[0].role != "system":
        return (Message("system", said), *turns)
    if turns[0].content != said:
        raise Unreadable(
            f"the row has two system turns: its column {name!r}, and the first of its turns",
            found=f"{shown(said, 40)!r} and {shown(turns[0].content, 40)!r}",
            fix=f"have the column not read: data.columns={{{name}: null}}",
        )
    return turns


def tools_of(row: RawColumns) -> Tools:
    """The row's tools, under either word. `Unreadable` where the two name different ones."""
    tools, functions = read_tools(row.get("tools")), _functions(row.get("functions"))
    if tools and functions and tools != functions:
        fix = "have one of them not read: data.columns={functions: null}"
        raise Unreadable("the row has both tools and functions, and they differ", fix=fix)
    return tools or functions


def _functions(given: Any) -> Tools:
    try:
        return read_tools(given) if is_filled(given) else ()
    except Unreadable as error:
        what = f"the column 'functions' is read as 'tools' is: {error.what}"
        fix = "where it means something else, have it not read: data.columns={functions: null}"
        raise Unreadable(what, error.found, fix) from None
