"""Code of the user's that a recipe names: found before anything is loaded, and called within a limit of time."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, RecipeError


class TimedOut(DataError):
    """Code of the user's took longer than it may."""


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
        raise RecipeError(f"{setting}: {head} has no {kind} {rest!r}", found=there)
    return found


def _module(head: str, name: str, setting: str) -> Any:
    try:
        if not head.endswith(".py"):
            return importlib.import_module(head)
        path = Path(head)
        if not path.is_file():
            raise RecipeError(f"{setting}: there is no file {head}", where=name)
        mark = hashlib.blake2b(str(path.resolve()).encode() + path.read_bytes(), digest_size=8).hexdigest()
        called = f"tunesmith_user_{path.stem}_{mark}"
        if called in sys.modules:  # one file is one module, whoever names it
            return sys.modules[called]
        spec = importlib.util.spec_from_file_location(called, path)
        if spec is None or spec.loader is None:
            raise RecipeError(f"{setting}: {head} is no Python file", where=name)
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
        raise RecipeError(f"{setting}: {head} cannot be imported", found=f"{type(error).__name__}: {error}") from error


class Worker:
    """A thread with a loop of its own in which calls run one after another: what is opened in one (a database, a
    client) can be used in the next. A call that takes too long is left behind, and the worker with it."""

    def __init__(self, called: str) -> None:
        self.called = called
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], dict[str, Any], threading.Event] | None]
        self._calls = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name=called).start()

    def ask(self, seconds: float, call: Callable[[], Any], rows: Sequence[str]) -> Any:
        """What `call` gives, awaited where it must be; `TimedOut` where it takes longer. `rows`: those it is about."""
        outcome: dict[str, Any] = {}
        done = threading.Event()
        self._calls.put((call, outcome, done))
        if not done.wait(seconds):
            first = ", ".join(dict.fromkeys(rows[:3]))
            raise TimedOut(
                f"{self.called} did not answer within {seconds:g} s",
                where=f"{first}, …" if len(rows) > 3 else first,
                fix="make it faster, or raise objective.reward_seconds",
            )
        if isinstance(error := outcome.get("error"), SystemExit):
            raise RuntimeError(f"it asked Python to exit, with {error.code!r}") from error
        if error is not None:
            raise error
        return outcome["value"]

    def close(self) -> None:
        """No further call comes."""
        self._calls.put(None)

    def _work(self) -> None:
        with asyncio.Runner() as runner:
            while (asked := self._calls.get()) is not None:
                call, outcome, done = asked
                try:
                    made = call()
                    outcome["value"] = runner.run(_awaited(made)) if inspect.isawaitable(made) else made
                except BaseException as error:
                    outcome["error"] = error
                done.set()


async def _awaited(made: Any) -> Any:
    return await made


def is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
