"""SIGINT, SIGTERM and SIGHUP: asked once, the work stops at the next safe place; SIGINT asked again, at once.

SIGHUP is what a closed terminal or a broken connection sends. A signal that whoever started the process had ignored
(nohup; SIGINT of a job in a script's background) stays ignored.
"""

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


WATCHED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def watched() -> Iterator[Signals]:
    """Handle the signals for the length of a run (in the main thread; elsewhere nothing is changed)."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    heard = [number for number in WATCHED if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, signals.handle) for number in heard}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
