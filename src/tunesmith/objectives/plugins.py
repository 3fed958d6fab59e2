"""Code of the user's that a recipe names: found before anything is loaded, and called within a limit of time."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, RecipeError


class TimedOut(DataError):
    """A reward took longer than it may."""


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
        called = f"tunesmith_reward_{path.stem}_{abs(hash(str(path.resolve()))):x}"
        spec = importlib.util.spec_from_file_location(called, path)
        if spec is None or spec.loader is None:
            raise RecipeError(f"{setting}: {head} is no Python file", where=name)
        module = importlib.util.module_from_spec(spec)
        sys.modules[called] = module
        if str(path.parent.resolve()) not in sys.path:
            sys.path.append(str(path.parent.resolve()))  # for files beside it
        spec.loader.exec_module(module)
        return module
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(f"{setting}: {head} cannot be imported", found=f"{type(error).__name__}: {error}") from error


def within(seconds: float, call: Callable[[], Any], called: str, rows: Sequence[str]) -> Any:
    """What `call` gives, awaited where it must be; `TimedOut` where it takes longer. `rows` are those it is about."""
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            made = call()
            outcome["value"] = asyncio.run(_awaited(made)) if inspect.isawaitable(made) else made
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=work, daemon=True, name=called)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        first = ", ".join(dict.fromkeys(rows[:3]))
        raise TimedOut(
            f"{called} did not answer within {seconds:g} s",
            where=f"{first}, …" if len(rows) > 3 else first,
            fix="make it faster, or raise objective.reward_seconds",
        )
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


async def _awaited(made: Any) -> Any:
    return await made
