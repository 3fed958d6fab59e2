"""An empty cell of a table, which is text without letters and counts as nothing where columns are counted.

A CSV cannot write null. In JSON, "" is a value that somebody wrote, and stays one.
"""

from __future__ import annotations

from typing import Any


class EmptyCell(str):
    """Always "". `rows/messages.py` gives it on as plain text."""

    __slots__ = ()


EMPTY_CELL = EmptyCell()
"""Stands in every cell that a file leaves empty: a table may have millions of them."""


def is_filled(value: Any) -> bool:
    """Whether a column holds anything: neither null nor an empty cell."""
    return value is not None and not isinstance(value, EmptyCell)
