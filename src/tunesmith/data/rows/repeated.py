"""Whether a column `text` says anything of its own, or is only the row's other columns in the words of a template.

Many data sets hold both: tatsu-lab/alpaca has instruction, input and output, and in `text` the three as Alpaca's
template writes them. Which of the two is meant is then no question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tunesmith.data.reading.empty_cells import is_filled
from tunesmith.data.rows.messages import Unreadable, parsed

Columns = Mapping[str, Sequence[frozenset[str]]]
"""Of each format the sets of columns any one of which a row of it fills."""


def spoken_apart(rows: Iterable[Mapping[str, Any]], formats: Columns) -> set[str]:
    """The formats beside whose columns the `text` of some row says something else, or stands alone."""
    apart: set[str] = set()
    for row in rows:
        if is_filled(row.get("text")) and len(apart) < len(formats):
            apart |= {name for name, kinds in formats.items() if name not in apart and not _repeats(row, kinds)}
    return apart


def _repeats(row: Mapping[str, Any], kinds: Sequence[frozenset[str]]) -> bool:
    """Whether the row's text holds all that its columns of one of these kinds say, white space around it aside; of an
    `input` beside them too."""
    text = row["text"]
    for columns in kinds:
        filled = {name: row[name] for name in sorted(columns | {"input"}) if is_filled(row.get(name))}
        if not isinstance(text, str) or not columns <= filled.keys():
            continue
        try:
            said = [part.strip() for name, value in filled.items() for part in _parts(name, value)]
        except Unreadable:
            continue
        if any(said) and all(part in text for part in said):
            return True
    return False


def _parts(name: str, value: Any) -> Iterator[str]:
    """The texts that a column says: itself, or the contents of its messages."""
    if name in ("messages", "conversations"):
        value = parsed(value, name)
    if isinstance(value, str):
        yield value
        return
    for item in value if isinstance(value, list | tuple) else [None]:
        said = next((item[key] for key in ("content", "value") if key in item), 0) if isinstance(item, Mapping) else 0
        if said is not None and not isinstance(said, str):
            raise Unreadable("no message whose content is one text")
        yield said or ""
