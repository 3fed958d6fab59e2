"""Code of the user's that a recipe names: found before anything is loaded, and called within a limit of time."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import hashlib
import importlib
import importlib.util
import inspect
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, RecipeError

GRACE_SECONDS = 5.0
"""Least time beyond a limit after which the process is ended; half the limit where that is more. The ordinary error of
a call that takes too long comes first."""
LEFT_SECONDS, BEAT_SECONDS = 30.0, 5.0
"""How long a call that was left behind may keep every other thread from running, and how often that is looked at."""
MOST_NAMED = 3
"""Rows that an error names of those of a call."""


class TimedOut(DataError):
    """Code of the user's took longer than it may."""


class OutOfTime(Exception):
    """Raised within a call that keeps its limit itself: it has met it."""


def short_name(name: str) -> str:
    """Without the folder of its file."""
    path, found, rest = name.rpartition(".py:")
    return f"{Path(path).name}{found}{rest}" if found else name


def imported(name: str, setting: str, kind: str) -> Any:
    """What "file.py:name" or "module:name" means; `kind` is what it should be, in a word."""
    head, _, rest = name.rpartition(":")
    module = _module(head, name, setting)
    found = getattr(module, rest, None)
    if not callable(found):
        is_kind = inspect.isclass if kind == "class" else inspect.isfunction
        there = ", ".join(key for key, value in vars(module).items() if is_kind(value)) or f"no {kind}"
        raise RecipeError(f"{setting}: {head} has no {kind} {rest!r}", found=there, fix="name one that is there")
    return found


def _module(head: str, name: str, setting: str) -> Any:
    try:
        if not head.endswith(".py"):
            return importlib.import_module(head)
        path = Path(head)
        if not path.is_file():
            fix = "give its path from the recipe's folder or the current one, as file.py:name"
            raise RecipeError(f"{setting}: there is no file {head}", where=name, fix=fix)
        mark = hashlib.blake2b(str(path.resolve()).encode() + path.read_bytes(), digest_size=8).hexdigest()
        called = f"tunesmith_user_{path.stem}_{mark}"
        if called in sys.modules:  # one file is one module, whoever names it
            return sys.modules[called]
        spec = importlib.util.spec_from_file_location(called, path)
        if spec is None or spec.loader is None:
            raise RecipeError(f"{setting}: {head} is no Python file", where=name, fix="name a file that ends in .py")
        module = importlib.util.module_from_spec(spec)
        if str(path.parent.resolve()) not in sys.path:
            sys.path.append(str(path.parent.resolve()))  # for files beside it
        sys.modules[called] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[called]
            raise
        return module
    except RecipeError:
        raise
    except (Exception, SystemExit) as error:
        found = f"{type(error).__name__}: {error}"
        fix = f"mend it: python -c 'import {Path(head).stem}' should say the same"
        raise RecipeError(f"{setting}: {head} cannot be imported", found=found, fix=fix) from error


@contextlib.contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Ends the process, and says on stderr where each of its threads stands, if what is done under it takes longer than
    `seconds` and a grace.

    Code that keeps Python's lock, as a backtracking regular expression of `re` does, lets no other thread find that it
    took too long, and no signal be heard: nothing but the end of the process stops it.
    """
    grace = max(GRACE_SECONDS, seconds / 2)
    faulthandler.dump_traceback_later(seconds + grace, exit=True, file=2)  # sys.stderr may be no file
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _watched(future: Future[Any]) -> None:
    """Ends the process where a call that was left behind takes Python's lock for good after that: a thread that can no
    longer put the end off lets it come."""

    def beat() -> None:
        while not future.done():
            faulthandler.dump_traceback_later(LEFT_SECONDS, exit=True, file=2)
            wait([future], BEAT_SECONDS)
        faulthandler.cancel_dump_traceback_later()

    threading.Thread(target=beat, daemon=True).start()


def rows_of(rows: Sequence[str]) -> str:
    """The rows of a call, for an error that blames none of them: the first few, and how many there are."""
    distinct = list(dict.fromkeys(rows))
    if len(distinct) == 1:
        return distinct[0]
    first = "; ".join(distinct[:MOST_NAMED])
    return f"{len(distinct)} rows ({first}{'; …' if len(distinct) > MOST_NAMED else ''})"


@dataclass(frozen=True)
class Call:
    """What a worker was asked. `called`: the worker's name; `rows`: those that the call is about."""

    called: str
    rows: Sequence[str]
    future: Future[Any]

    def answer(self, seconds: float) -> Any:
        """What came of it; `TimedOut` where nothing has, within the `seconds` that were waited."""
        error = self.future.exception() if self.future.done() else OutOfTime()
        if isinstance(error, OutOfTime):
            if not self.future.done():
                _watched(self.future)
            raise TimedOut(
                f"{self.called} did not answer within {seconds:g} s",
                where=rows_of(self.rows),
                fix="make it faster, or raise objective.reward_seconds",
            )
        if isinstance(error, SystemExit):
            raise RuntimeError(f"it asked Python to exit, with {error.code!r}") from error
        if error is not None:
            raise error
        return self.future.result()


class Worker:
    """A thread with a loop of its own in which calls run one after another: what is opened in one (a database, a
    client) can be used in the next. A call that takes too long is left behind, and the worker with it."""

    def __init__(self, called: str) -> None:
        self.called = called
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name=called).start()

    def begin(self, call: Callable[[], Any], rows: Sequence[str]) -> Call:
        """Has `call` made, and what it gives awaited where it must be; nobody waits yet."""
        future: Future[Any] = Future()
        self._calls.put((call, future))
        return Call(self.called, rows, future)

    def ask(self, seconds: float, call: Callable[[], Any], rows: Sequence[str]) -> Any:
        """What `call` gives; `TimedOut` where it takes longer."""
        with ended_after(seconds):
            made = self.begin(call, rows)
            wait([made.future], seconds)
        return made.answer(seconds)

    def close(self) -> None:
        """No further call comes."""
        self._calls.put(None)

    def _work(self) -> None:
        with asyncio.Runner() as runner:
            while (asked := self._calls.get()) is not None:
                call, future = asked
                try:
                    made = call()
                    future.set_result(runner.run(_awaited(made)) if inspect.isawaitable(made) else made)
                except BaseException as error:
                    future.set_exception(error)


async def _awaited(made: Any) -> Any:
    return await made


def is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
