"""What stands around every verb: errors as sentences with their own exit codes, and no tracebacks unless asked for."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from tunesmith.errors import TunesmithError


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The verb, whose errors are sentences on stderr with their own exit code."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> None:
        debug = os.environ.get("TUNESMITH_DEBUG", "") not in ("", "0")
        try:
            function(*arguments, **options)
        except TunesmithError as error:
            if debug:
                raise
            _fail(error)
        except KeyboardInterrupt:
            if debug:
                raise
            print("\ninterrupted", file=sys.stderr)
            raise typer.Exit(130) from None
        except Exception as error:
            meant = None if debug else _of_the_machine(error)
            if meant is None:
                raise
            _fail(meant)

    return run


def _of_the_machine(error: Exception) -> TunesmithError | None:
    """A lack of memory or disk that nobody nearer had a sentence for; None for all other errors."""
    from tunesmith.atomic import no_room
    from tunesmith.errors import MachineError

    if no_room(error):
        return MachineError(
            "the disk is full", where=getattr(error, "filename", None), found=str(error), fix="make room"
        )
    if not isinstance(error, RuntimeError | MemoryError):
        return None
    from tunesmith.models.room import is_out_of_memory

    if not is_out_of_memory(error):
        return None
    return MachineError(
        "out of memory",
        found=str(error).partition("\n")[0] or None,
        fix="close something, take a smaller model or --batch-size, or model.dtype=bfloat16",
    )


def _fail(error: TunesmithError) -> NoReturn:
    name = error.public_name
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        name = f"\033[1;31m{name}\033[0m"
    print(f"{name}: {error}", file=sys.stderr)
    raise typer.Exit(error.exit_code) from None
