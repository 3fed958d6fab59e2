"""Jinja that came from a recipe or a hub: rendered in a sandbox, and not for ever."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from jinja2 import StrictUndefined
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 5.0

# What rendering a template can raise, whatever the template does.
TEMPLATE_ERRORS = (
    *(TemplateError, TimeoutError, TypeError, ValueError, LookupError),
    *(AttributeError, ArithmeticError, RuntimeError, MemoryError),
)


class NullValue(Exception):
    """A template wrote out a null."""


def _refuse_null(value: Any) -> Any:
    if value is None:
        raise NullValue("a null would be written as the word None")
    return value


@cache
def column_environment() -> ImmutableSandboxedEnvironment:
    """For templates over a row's columns: a missing column or a null is an error, never empty text."""
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, finalize=_refuse_null, autoescape=False, keep_trailing_newline=True
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return environment


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
