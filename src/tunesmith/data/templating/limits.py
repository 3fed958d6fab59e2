"""How much a template may make, and for how long: asked before anything is made that could be large.

A text of a billion letters is made by one call that no timer can end, so it is refused before. In a thread that has no
timer, each turn of a loop and each call of a macro looks at the clock itself.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError

SECONDS = 5.0
AGAIN_SECONDS = 0.5
"""After which the alarm comes again: Python swallows an error that strikes in a callback of its own."""
MOST_LETTERS = 2**24
"""A template may write so many letters more than it is given: a row of that length would take minutes to tokenise."""
MOST_IN_ALL = 2**29
"""Letters of all texts that are made on the way, also of those that are thrown away again."""
MOST_BITS = 2**16
"""Of a whole number."""
ITEM = 8
"""Letters that an item of a list counts for: as many bytes."""

# What rendering a template can raise, whatever the template does.
TEMPLATE_ERRORS = (
    *(TemplateError, TimeoutError, TypeError, ValueError, LookupError),
    *(AttributeError, ArithmeticError, RuntimeError, MemoryError),
)


class Limits:
    """Those of one rendering, of what it is given: `most` letters in one text or list, and so long."""

    def __init__(self, *given: Any, seconds: float = SECONDS) -> None:
        self.given, self.made = given, 0
        self.seconds, self.end = seconds, time.monotonic() + seconds

    @cached_property
    def most(self) -> int:
        return MOST_LETTERS + sum(len(str(value)) for value in self.given)

    def allow(self, letters: int, does: str = "writes") -> None:
        """OverflowError where so many letters are too many for one text, or with all that was made before them."""
        if letters > MOST_LETTERS and letters > self.most:
            raise OverflowError(f"it {does} {letters:,} letters, and {self.most:,} are the most that it may of these")
        self.made += letters
        if self.made > MOST_IN_ALL and self.made > (most := MOST_IN_ALL + 64 * (self.most - MOST_LETTERS)):
            raise OverflowError(f"the texts that it makes on the way have more than {most:,} letters")

    def step(self) -> None:
        if time.monotonic() > self.end:
            raise TimeoutError(f"no end after {self.seconds:g} seconds")


_LIMITS: ContextVar[Limits | None] = ContextVar("limits of a template", default=None)


def limits() -> Limits:
    """Those that hold here; new ones where nobody set any."""
    return _LIMITS.get() or Limits()


@contextmanager
def limited(*given: Any, seconds: float = SECONDS) -> Iterator[None]:
    """The limits for rendering a template that is given these values."""
    token = _LIMITS.set(Limits(*given, seconds=seconds))
    try:
        with _alarm(seconds):
            yield
    finally:
        _LIMITS.reset(token)


def bounded(text: str, *given: Any) -> str:
    """`text`, or OverflowError where a template wrote far more than it was given."""
    Limits(*given).allow(len(text))
    return text


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """TimeoutError after `seconds`, from within any Python code. Needs a free POSIX timer and the main thread."""
    free = (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    )
    if not free:
        yield
        return

    is_over = False

    def expired(number: int, frame: object) -> None:
        if not is_over:
            raise TimeoutError(f"no end after {seconds:g} seconds")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
    try:
        yield
    finally:
        is_over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
