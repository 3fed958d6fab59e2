"""Which signals are heard, and that what was ignored before a run stays ignored."""

from __future__ import annotations

import os
import signal

import pytest

from tunesmith.errors import Interrupted
from tunesmith.train.signals import watched


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_each_ends_what_may_be_broken_off_with_its_own_code(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"stopped by {name}") as caught, watched():
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_what_was_ignored_stays_ignored(name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with watched() as signals:
            os.kill(os.getpid(), number)
            assert signals.received is None
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
