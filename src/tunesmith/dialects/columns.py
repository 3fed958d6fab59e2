"""The columns of another tool's rows: which there are, which of them it passes over, how Jinja can name them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.data.formats import FORMATS
from tunesmith.data.reading.files import READERS, ending, told_rows
from tunesmith.dialects.base import Said
from tunesmith.errors import TunesmithError

_JINJA = frozenset(
    [
        *("and", "else", "if", "in", "is", "not", "or", "true", "True", "false", "False", "none", "None"),
        *("caller", "loop", "self", "super"),
    ]
)
"""Names that mean something else in a template."""


def unread(format: str, *read: str) -> dict[str, str | None]:
    """For `data.columns`: null for every column that `format` reads of a row and the tool does not; it reads `read`."""
    return dict.fromkeys(sorted(FORMATS[format].reads.difference(read)))


def unnamed(columns: Mapping[str, str]) -> dict[str, str]:
    """Of columns {ours: theirs}, those whose own name cannot stand in a template; `data.columns` gives them ours."""
    return {ours: theirs for ours, theirs in columns.items() if not theirs.isidentifier() or theirs in _JINJA}


def first_row(said: Said, path: str) -> dict[str, Any]:
    """What the first row of a file here holds, less its nulls; nothing where the file is not here, or not readable."""
    for file in (said.folder / path, Path(path).expanduser()):
        if ending(file) in READERS and file.is_file():
            try:
                _, row = next(told_rows(file, 1))
            except (TunesmithError, OSError, StopIteration):
                return {}
            return {name: value for name, value in row.items() if value is not None}
    return {}
