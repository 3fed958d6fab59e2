"""Jinja that came from a recipe or a hub: rendered in a sandbox, and not for ever."""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

from jinja2 import StrictUndefined, Undefined, nodes, pass_eval_context
from jinja2.exceptions import TemplateError
from jinja2.filters import FILTERS
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 5.0
MOST_LETTERS = 2**24
"""A template may write so many letters more than it is given: a row of that length would take minutes to tokenise."""

# What rendering a template can raise, whatever the template does.
TEMPLATE_ERRORS = (
    *(TemplateError, TimeoutError, TypeError, ValueError, LookupError),
    *(AttributeError, ArithmeticError, RuntimeError, MemoryError),
)


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


class _ColumnEnvironment(ImmutableSandboxedEnvironment):
    """Both sides of ~ pass through `string`, so that they are checked like all that is written. Products and powers
    that no row could mean are refused before they are computed, since the time limit cannot end them."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        counts = [value for value in (left, right) if isinstance(value, int)]
        size = max((len(value) for value in (left, right) if isinstance(value, str | list | tuple)), default=0)
        if operator == "*" and size and counts and size * counts[0] > MOST_LETTERS:
            raise OverflowError(f"it repeats {size:,} letters or items {counts[0]:,} times")
        if operator == "**" and len(counts) == 2 and left.bit_length() * right > MOST_LETTERS:
            raise OverflowError(f"{left} ** {right} is too large")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for joined in tree.find_all(nodes.Concat):
            joined.nodes = [
                nodes.Filter(part, "string", [], [], None, None, lineno=part.lineno) for part in joined.nodes
            ]
        tree.set_environment(self)
        return tree


@cache
def column_environment() -> ImmutableSandboxedEnvironment:
    """For templates over a row's columns: a missing column or a null is an error, never empty text or the word None."""
    environment = _ColumnEnvironment(
        undefined=StrictUndefined, finalize=_writable, autoescape=False, keep_trailing_newline=True
    )
    environment.filters |= {name: _of_writable(FILTERS[name]) for name in _TEXT_FILTERS}
    environment.filters |= {"join": _join, "format": _format, "tojson": _tojson}
    return environment


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)


def bounded(text: str, *given: Any) -> str:
    """`text`, or OverflowError where a template wrote far more than it was given."""
    if len(text) > MOST_LETTERS and (most := MOST_LETTERS + sum(len(str(value)) for value in given)) < len(text):
        raise OverflowError(f"it writes {len(text):,} letters, and {most:,} are the most that it may of these")
    return text


@contextmanager
def time_limit(seconds: float = SECONDS) -> Iterator[None]:
    """TimeoutError after `seconds`. Needs a free POSIX timer and the main thread; elsewhere there is no limit."""
    free = (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    )
    if not free:
        yield
        return

    def expired(number: int, frame: object) -> None:
        raise TimeoutError(f"no end after {seconds:g} seconds")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
