"""SIGINT and SIGTERM: asked once, the work stops at the next safe place; asked again, at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tunesmith.errors import Interrupted


class Signals:
    """Remembers which signal arrived. `at_once` True: it interrupts where it finds the work (loading, reading data)."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.at_once = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None
        self.received = number
        if self.at_once or (again and number == signal.SIGINT):
            raise Interrupted(
                f"stopped by {signal.Signals(number).name}",
                signal_number=number,
                fix="go on with --resume: what was saved is whole",
            )

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal is only remembered; whoever works here asks `received` at safe places."""
        before, self.at_once = self.at_once, False
        try:
            yield
        finally:
            self.at_once = before

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Inside a deferred stretch: work that may be broken off anywhere, such as an evaluation."""
        before, self.at_once = self.at_once, True
        try:
            if self.received is not None:
                self.handle(self.received, None)
            yield
        finally:
            self.at_once = before


@contextmanager
def watched() -> Iterator[Signals]:
    """Handle both signals for the length of a run (in the main thread; elsewhere nothing is changed)."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
