"""What rows hold and nobody reads: said, never dropped in silence. Null and an empty cell are nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from tunesmith.data.problems import listed
from tunesmith.data.reading.empty_cells import is_filled
from tunesmith.data.reading.files import RawRow
from tunesmith.data.rows.messages import KNOWN_KEYS, Names

NAMED = 12
"""So many columns are named; of more, how many there are."""


def taken_out(raw: Sequence[RawRow], columns: Mapping[str, str | None]) -> list[str]:
    """What `data.columns` {wanted: yours} takes out of rows that hold it: a column that is null there, or one in whose
    place another is read."""
    gone = {name: yours for name, yours in columns.items() if name not in columns.values()}
    return [
        name if yours is None else f"{name} ({yours} is read in its place)"
        for name, yours in gone.items()
        if any(is_filled(row.get(name)) for _, row in raw)
    ]


def unread(
    raw: Sequence[RawRow], reads: Collection[str], passed_over: Callable[[Mapping[str, Any]], set[str]]
) -> dict[str, None]:
    """The columns that are not among those that are read, or that are passed over in some row."""
    found = dict.fromkeys(key for _, row in raw for key, value in row.items() if key not in reads and is_filled(value))
    return found | dict.fromkeys(key for _, row in raw for key in sorted(passed_over(row)))


def told(columns: Iterable[str]) -> list[str]:
    """The note on columns that are not used, where there are any."""
    names = list(columns)
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return [f"columns not used: {listed(names[:NAMED])}{more}"] if names else []


def told_keys(raw: Sequence[RawRow], reads: Collection[str], names: Names) -> list[str]:
    """The note on keys of messages that are not used; messages stand in the columns of `reads`."""
    speakers, known = {"role", "from", names.keys.get("role")}, KNOWN_KEYS.union(names.keys.values()) - names.unread
    turns = [turn for _, row in raw for key in reads for turn in _dicts(row.get(key)) if not speakers.isdisjoint(turn)]
    odd = dict.fromkeys(key for turn in turns for key, value in turn.items() if key not in known and value is not None)
    return [f"message keys not used: {listed(odd)}"] if odd else []


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
