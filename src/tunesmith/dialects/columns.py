"""The columns of another tool's rows: which there are, which of them it passes over, how Jinja can name them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.data.formats import FORMATS
from tunesmith.data.reading.empty_cells import is_filled
from tunesmith.data.reading.files import READERS, told_rows
from tunesmith.data.reading.opened import UTF8_MARK, ending, opened
from tunesmith.dialects.base import Said
from tunesmith.errors import TunesmithError

_JINJA = frozenset(
    [
        *("and", "else", "if", "in", "is", "not", "or", "true", "True", "false", "False", "none", "None"),
        *("caller", "loop", "self", "super"),
    ]
)
"""Names that mean something else in a template."""
MOST_BYTES = 2**22
"""Of a JSON text that is read whole for the sake of its first row, each time that the config is loaded."""


def unread(format: str, *read: str) -> dict[str, str | None]:
    """For `data.columns`: null for every column that `format` reads of a row and the tool does not; it reads `read`."""
    return dict.fromkeys(sorted(FORMATS[format].reads.difference(read)))


def unnamed(columns: Mapping[str, str]) -> dict[str, str]:
    """Of columns {ours: theirs}, those whose own name cannot stand in a template; `data.columns` gives them ours."""
    return {ours: theirs for ours, theirs in columns.items() if not theirs.isidentifier() or theirs in _JINJA}


def first_row(said: Said, path: str) -> dict[str, Any]:
    """What the first row of a file here holds, less its nulls and empty cells; nothing where the file is not here, not
    readable, or would be read whole for it and is large."""
    for file in (said.folder / path, Path(path).expanduser()):
        if ending(file) in READERS and file.is_file():
            try:
                if _is_read_whole(file):
                    return {}
                _, row = next(told_rows(file, 1))
            except (TunesmithError, OSError, EOFError, zlib.error, StopIteration):
                return {}
            return {name: value for name, value in row.items() if is_filled(value)}
    return {}


def _is_read_whole(file: Path) -> bool:
    """Whether a file is large, and no list of JSON, which alone of `.json` is read row by row."""
    if ending(file) not in (".json", ".json.gz"):
        return False
    with opened(file) as stream:
        start = stream.read(MOST_BYTES + 1)
    return len(start) > MOST_BYTES and not start.removeprefix(UTF8_MARK).lstrip().startswith(b"[")
