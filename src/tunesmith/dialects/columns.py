"""The columns of another tool's rows: which of them it passes over, and how Jinja can name them."""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.data.formats import FORMATS

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
