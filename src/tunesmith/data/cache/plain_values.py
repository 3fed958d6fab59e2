"""Records of the data path as plain JSON, and back: the same types, every number as it was.

A list stands for itself; an object has one key, which says what it is: a record's name, or tuple, dict, array.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from tunesmith.data.check.counts import Counts, Finding, OfSource, Tally
from tunesmith.data.types import (
    Conversation,
    Document,
    Judged,
    Labelled,
    Marked,
    Message,
    Origin,
    Piece,
    Pieces,
    Preference,
    Prompt,
)

RECORDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Conversation,
        Counts,
        Document,
        Finding,
        Judged,
        Labelled,
        Marked,
        Message,
        OfSource,
        Origin,
        Piece,
        Pieces,
        Preference,
        Prompt,
        Tally,
    )
}


class NotFlat(Exception):
    """A value, or a row, of a kind that has no place in a file of ours."""


def plain(value: Any) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [plain(item) for item in value]
    if kind is tuple:
        return {"tuple": [plain(item) for item in value]}
    if kind is dict:
        return {"dict": [[plain(key), plain(item)] for key, item in value.items()]}
    if kind is array and value.typecode == "q":
        return {"array": value.tolist()}
    if RECORDS.get(kind.__name__) is kind:
        return {kind.__name__: [plain(getattr(value, one.name)) for one in fields(kind)]}
    raise NotFlat(kind.__name__)


def of_plain(value: Any) -> Any:
    if isinstance(value, list):
        return [of_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((name, inner),) = value.items()
    return _MADE[name](inner) if name in _MADE else RECORDS[name](*map(of_plain, inner))


_MADE: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda inner: tuple(map(of_plain, inner)),
    "dict": lambda inner: {of_plain(key): of_plain(item) for key, item in inner},
    "array": lambda inner: array("q", inner),
}
