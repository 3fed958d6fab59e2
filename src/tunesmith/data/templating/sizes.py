"""How long a text would be, before it is made: what Jinja's filters and Python's methods make of what they are given.

Each function takes what its filter or method takes, and gives letters: never many fewer than there would be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tunesmith.data.templating.limits import ITEM, MOST_LETTERS, limits

_LETTERS_OF_NUMBER = 24


@dataclass
class Size:
    """`letters` of a value written as text, the `values` in it, and how `deep` it is nested."""

    letters: int = 0
    values: int = 0
    deep: int = 0


def size(value: Any) -> Size:
    """Counts no further than what is too much anyway: lists that hold one another can stand for any number."""
    if isinstance(value, str | bytes):
        return Size(len(value), 1)
    found = _counted(value, MOST_LETTERS)
    return found if found.letters <= MOST_LETTERS else _counted(value, limits().most)


def letters(value: Any) -> int:
    return len(value) if isinstance(value, str) else size(value).letters


def _counted(value: Any, enough: int) -> Size:
    found = Size()
    open_: list[Iterator[Any]] = [iter((value,))]
    while open_ and found.letters <= enough:
        item = next(open_[-1], _END)
        if item is _END:
            open_.pop()
            continue
        found.values += 1
        if isinstance(item, str | bytes):
            found.letters += len(item) + 4
        elif isinstance(item, Mapping | list | tuple | set | frozenset):
            limits().step()
            found.letters += 4
            open_.append(chain.from_iterable(item.items()) if isinstance(item, Mapping) else iter(item))
            found.deep = max(found.deep, len(open_) - 1)
        elif isinstance(item, int):
            found.letters += 4 + item.bit_length() // 3
        else:
            found.letters += _LETTERS_OF_NUMBER
    return found


_END = object()


def _number(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0


def percent(text: str | bytes, values: Any) -> int:
    """Of `text % values`: widths may be of any size, and `*` takes one from the values."""
    text = text.decode("latin-1") if isinstance(text, bytes) else text
    marks = re.findall(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d+)?(?:\.(\*|\d+)?)?", text)
    wide = sum(int(width) for mark in marks for width in mark if width.isdecimal())
    given = values if isinstance(values, tuple) else (values,)
    largest = max((abs(value) for value in given if isinstance(value, int)), default=0)
    wide += largest * sum(mark.count("*") for mark in marks)
    if isinstance(values, Mapping):
        each = max(map(letters, values.values()), default=0)
        return len(text) + wide + len(marks) * max(each, letters(values))
    return len(text) + wide + sum(map(letters, given))


def padded(text: Any, width: Any = 80, *_: Any, **__: Any) -> int:
    return max(letters(text), _number(width))


def replaced(text: Any, old: Any, new: Any, count: Any = None) -> int:
    limits().allow(letters(text))
    text, old, new = (part if isinstance(part, str | bytes) else str(part) for part in (text, old, new))
    times = text.count(old) if isinstance(old, type(text)) or isinstance(text, str) else 0
    if isinstance(count, int) and count >= 0:
        times = min(times, count)
    return len(text) + times * max(0, len(new) - len(old))


def joined(parts: Iterable[Any], between: Any = "") -> int:
    """Of parts that can be walked over more than once."""
    if isinstance(parts, str):
        return len(parts) * (1 + letters(between))
    count = each = 0
    for part in parts:
        each += letters(part)
        count += 1
    return each + count * letters(between)


def _indented(text: Any, width: Any = 4, *_: Any, **__: Any) -> int:
    lines = 1 + (text.count("\n") if isinstance(text, str) else 0)
    return letters(text) + lines * (len(width) if isinstance(width, str) else _number(width))


def _as_json(value: Any, *options: Any, **named: Any) -> int:
    """An indent stands before every value, as often as it is deep; separators stand behind."""
    found, wide = size(value), 0
    for option in (*options, *named.values()):
        for part in option if isinstance(option, list | tuple) else (option,):
            wide += len(part) if isinstance(part, str) else _number(part)
    return found.letters + found.values * (1 + found.deep) * wide


def _pretty(value: Any, *_: Any) -> int:
    found = size(value)
    return found.letters + (found.values * found.letters if found.deep else 0)


def _wrapped(text: Any, *options: Any, **named: Any) -> int:
    between = max((len(option) for option in (*options, *named.values()) if isinstance(option, str)), default=1)
    return letters(text) * between if between > 1 else letters(text)


def _linked(text: Any, *options: Any, **named: Any) -> int:
    added = sum(len(option) for option in (*options, *named.values()) if isinstance(option, str))
    words = len(text.split()) if isinstance(text, str) else 1
    return 3 * letters(text) + words * (added + _LETTERS_OF_NUMBER)


def _rows(_: Any, count: Any, fill_with: Any = None) -> int:
    return 0 if fill_with is None else _number(count) * ITEM


def _columns(_: Any, count: Any, fill_with: Any = None) -> int:
    return _number(count) * ITEM


def _rounded(_: Any, precision: Any = 0, method: Any = None) -> int:
    """Ten is raised to this."""
    return abs(_number(precision)) ** 2


def _listed(value: Any) -> int:
    return len(value) * ITEM if hasattr(value, "__len__") else 0


def lorem(n: Any = 5, html: Any = True, min: Any = 20, max: Any = 100) -> int:
    return _number(n) * _number(max) * 12


def _text(value: Any, *_: Any, **__: Any) -> int:
    return letters(value)


OF_FILTERS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("trim", "string", "safe", "lower", "upper", "capitalize", "title", "truncate"), _text),
    **dict.fromkeys(("escape", "e", "forceescape", "urlencode", "xmlattr", "wordcount", "striptags"), _text),
    "batch": _rows,
    "center": padded,
    "format": lambda text, *values, **named: percent(str(text), named or values),
    "indent": _indented,
    "list": _listed,
    "pprint": _pretty,
    "replace": replaced,
    "round": _rounded,
    "slice": _columns,
    "tojson": _as_json,
    "urlize": _linked,
    "wordwrap": _wrapped,
}


def _tabs(text: Any, tabsize: Any = 8) -> int:
    return len(text) + text.count("\t" if isinstance(text, str) else b"\t") * _number(tabsize)


def _translated(text: Any, table: Any, *_: Any) -> int:
    values = table.values() if isinstance(table, Mapping) else ()
    return len(text) * max((len(value) for value in values if isinstance(value, str)), default=1)


OF_METHODS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), padded),
    "expandtabs": _tabs,
    "join": lambda between, parts: joined(parts, between),
    "replace": replaced,
    "translate": _translated,
}
"""Of text and bytes; the first value is the text itself."""
