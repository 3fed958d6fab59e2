"""JSON as two readers would read it alike: no NaN, no number beyond range, no key twice.

Python's parser takes all of these. They are found where they stand and named there, not raised: so one bad row of a
list neither hides its own number nor the bad rows behind it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from tunesmith.data.problems import shown

# Python itself refuses longer ones (`sys.set_int_max_str_digits`), without saying where.
_MOST_DIGITS = 4000

DEEPEST = 200
"""Lists and objects in one another. Python's parser takes some 900, and what walks over them afterwards fewer."""

_FLAT = frozenset({int, float, bool, str, type(None)})
"""Types of values that hold no others."""


@dataclass(frozen=True)
class Fault:
    """Stands in a parsed value where the text said what is no JSON."""

    what: str


@dataclass(frozen=True)
class Parsed:
    """`has_faults`: somewhere in `value` there are faults, for `first_fault` to find; `may_be_deep`: that is for
    `is_deep` to say."""

    value: Any
    has_faults: bool
    may_be_deep: bool = False


def parse(text: str) -> Parsed:
    """Raises JSONDecodeError for broken syntax, RecursionError for what is nested too deeply, and nothing else."""
    faults, how = _strictly()
    value = json.loads(text, **how)
    return Parsed(value, bool(faults), _opens_many(text, 0, len(text)))


def parse_from(text: str, start: int) -> tuple[Parsed, int]:
    """The value that begins at `start`, and where it ends; what stands behind is not looked at. Raises as `parse`."""
    faults, how = _strictly()
    value, end = json.JSONDecoder(**how).raw_decode(text, start)
    return Parsed(value, bool(faults), _opens_many(text, start, end)), end


def _opens_many(text: str, start: int, end: int) -> bool:
    return text.count("[", start, end) + text.count("{", start, end) > DEEPEST


def is_deep(value: Any) -> bool:
    """Whether more than `DEEPEST` lists and objects stand in one another."""
    level = _nested([value])
    for _ in range(DEEPEST):
        if not level:
            return False
        level = [inner for item in level for inner in _nested(item.values() if isinstance(item, dict) else item)]
    return bool(level)


def _nested(items: Collection[Any]) -> list[Any]:
    """The lists and objects among `items`. Thousands of token ids are passed over by their types alone."""
    if _FLAT.issuperset(map(type, items)):
        return []
    return [item for item in items if isinstance(item, (dict, list, tuple))]


def _strictly() -> tuple[list[Fault], dict[str, Any]]:
    """The faults that are found, and the ways of Python's parser to find them."""
    faults: list[Fault] = []

    def fault(what: str) -> Fault:
        faults.append(Fault(what))
        return faults[-1]

    def pairs(items: list[tuple[str, Any]]) -> Any:
        result = dict(items)
        if len(result) == len(items):
            return result
        names = [name for name, _ in items]
        twice = next(name for name in names if names.count(name) > 1)
        return fault(f"the key {shown(twice)!r} stands twice in one object")

    def constant(name: str) -> Any:
        return fault(f"{name} is not JSON; write null or a number")

    def real(digits: str) -> Any:
        number = float(digits)
        return number if math.isfinite(number) else fault(f"the number {shown(digits, 40)} is out of range")

    def whole(digits: str) -> Any:
        return (
            int(digits) if len(digits) <= _MOST_DIGITS else fault(f"a number of {len(digits)} digits is out of range")
        )

    return faults, {"object_pairs_hook": pairs, "parse_constant": constant, "parse_float": real, "parse_int": whole}


def first_fault(value: Any) -> str | None:
    """What the first fault in `value` says."""
    if isinstance(value, Fault):
        return value.what
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for item in inner if (found := first_fault(item)) is not None), None)


def strict_value(text: str) -> Any:
    """The value of `text`; a ValueError for anything that is not strict JSON."""
    parsed = parse(text)
    if parsed.may_be_deep and is_deep(parsed.value):
        raise ValueError(f"nested too deeply, more than {DEEPEST} lists and objects in one another")
    if parsed.has_faults:
        raise ValueError(first_fault(parsed.value))
    return parsed.value
