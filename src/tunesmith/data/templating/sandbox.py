"""Jinja over the columns of a row, as a recipe writes it: in the guarded sandbox, and strict."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from functools import cache, wraps
from typing import Any

from jinja2 import StrictUndefined, Undefined, pass_context, pass_eval_context
from jinja2.filters import FILTERS
from jinja2.nodes import EvalContext
from jinja2.runtime import Context

from tunesmith.data.templating.guarded import CONCAT, Guarded, concat

# Filters that write their value out as text. Jinja's own make the word None of a null.
_TEXT_FILTERS = {
    *("trim", "string", "safe", "lower", "upper", "capitalize", "title", "replace", "indent", "center"),
    *("wordwrap", "truncate", "wordcount", "striptags", "escape", "e", "forceescape", "urlencode", "urlize"),
}


class Unwritable(Exception):
    """A template wrote out what is no text: a null, or a list as Python would show it."""


def _writable(value: Any) -> Any:
    if value is None:
        raise Unwritable("a column it writes out is null")
    if isinstance(value, float) and math.isnan(value):
        raise Unwritable("a column it writes out is NaN, which stands for a missing number")
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        kind = "dict" if isinstance(value, dict) else "list"
        raise Unwritable(f"it writes out a whole {kind}; take a part of it, as in [0], join or tojson")
    if isinstance(value, bytes):
        raise Unwritable("it writes out bytes, which are no text")
    if callable(value) and not isinstance(value, Undefined):
        raise Unwritable(f"it writes out no column but {getattr(value, '__name__', value)}, a function of Jinja")
    return value


def _of_writable(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """The same filter, refusing what is no text. Some filters are given a context of Jinja's before the value."""
    at = int(hasattr(filter_, "jinja_pass_arg"))

    @wraps(filter_)
    def checked(*values: Any, **options: Any) -> Any:
        _writable(values[at])
        return filter_(*values, **options)

    return checked


@pass_eval_context
def _join(context: EvalContext, values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    items = list(values)
    if attribute is None:
        for item in items:
            _writable(item)
    return str(FILTERS["join"](context, items, d, attribute))


@pass_eval_context
def _format(context: EvalContext, text: str, *values: Any, **named: Any) -> str:
    for value in (*values, *named.values()):
        _writable(value)
    return str(FILTERS["format"](text, *values, **named))


@pass_context
def _concat(context: Context, parts: list[Any]) -> str:
    for part in parts:
        _writable(part)
    return concat(context, parts)


@cache
def column_environment() -> Guarded:
    """For templates over a row's columns: a missing column or a null is an error, never empty text or the word None."""
    environment = Guarded(undefined=StrictUndefined, finalize=_writable, autoescape=False, keep_trailing_newline=True)
    environment.filters |= {name: _of_writable(FILTERS[name]) for name in _TEXT_FILTERS}
    environment.filters |= {"join": _join, "format": _format, "tojson": _tojson}
    environment.guard()
    environment.filters[CONCAT] = _concat
    return environment


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
