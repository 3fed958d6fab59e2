"""Runs one order in a process of its own, passes on what it tells, says how it ended; holds the study's folder."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from tunesmith import events
from tunesmith.atomic import write_json
from tunesmith.compare.worker import Order
from tunesmith.errors import CheckpointError, Interrupted
from tunesmith.progress import Progress
from tunesmith.record import locked
from tunesmith.train.signals import Signals, watched

Tell = Callable[[dict[str, Any]], None]
LETS_GO_SECONDS = 30.0
"""Within them a process whose study is gone has saved and ended, unless a step of its takes longer."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes the folder and holds its lock: a second process at work in it is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = locked(folder)
    try:
        yield
    finally:
        os.close(lock)


def let_go(folder: Path, say: Callable[[str], object], stop: Callable[[], int | None]) -> bool:
    """Waits a while for a process that still works in a run's folder: one whose study was killed saves its last step
    before it ends. One that is there for longer is found by the run itself. False: a signal came meanwhile."""
    until = time.monotonic() + LETS_GO_SECONDS
    is_said = False
    while (folder / "lock").is_file():
        try:
            os.close(locked(folder))
            break
        except CheckpointError as error:
            if stop() is not None:
                return False
            if time.monotonic() > until:
                break
            if not is_said:
                say(f"{error.found} is still at work in {folder}: waiting up to {LETS_GO_SECONDS:.0f} s for it to end")
                is_said = True
            time.sleep(0.2)
    return True


@contextmanager
def interruptible(again: str) -> Iterator[Signals]:
    """Work that asks for signals at safe places; `Interrupted` then says that the command `again` goes on."""
    with watched() as signals, signals.deferred():
        try:
            yield signals
        except Interrupted as error:
            raise error.to_do(f"{again} goes on from there") from None


@dataclass(frozen=True)
class Outcome:
    """`failed` says why a cell failed; None where it did not. `stopped`: a signal broke it off."""

    failed: str | None = None
    stopped: bool = False


class Runner(Protocol):
    def __call__(self, order: Order, tell: Tell, stop: Callable[[], int | None]) -> Outcome: ...


def shown(order: Order, runner: Runner, progress: Progress, stop: Callable[[], int | None]) -> Outcome:
    """The order done by `runner`, with its progress shown where `progress` shows its own."""
    with Progress(progress.stream, quiet=progress.is_quiet) as own:

        def tell(values: dict[str, Any]) -> None:
            if "say" in values:
                own.say(f"  {values['say']}")
            elif kind := getattr(events, values.get("event", ""), None):
                own(kind(**{key: value for key, value in values.items() if key != "event"}))

        return runner(order, tell, stop)


def in_process(order: Order, tell: Tell, stop: Callable[[], int | None]) -> Outcome:
    """A `Runner`: the worker as a child. `stop` gives the number of a signal that this process was sent; the child,
    which is in a group of its own, is sent it too, so that it saves its last whole step."""
    if not let_go(Path(order.folder), lambda text: tell({"say": text}), stop):
        return Outcome(stopped=True)
    path = Path(order.shared).parent / "orders" / f"{order.name}.json"
    for folder in (path.parent, order.log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(order))
    lines: queue.Queue[str | None] = queue.Queue()
    with order.log.open("a", encoding="utf-8") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "tunesmith.compare.worker", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": _own_path()},
        )

        def listen() -> None:
            assert child.stdout is not None
            for line in child.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=listen, daemon=True).start()
        try:
            failed = _follow(child, lines, tell, stop)
            code = child.wait()
        finally:
            if child.poll() is None:  # we were stopped at once
                child.kill()
                child.wait()
            assert child.stdin is not None
            child.stdin.close()
    number = stop()
    if number is not None and code != 0:
        return Outcome(stopped=True)
    if code == 0:
        return Outcome()
    if failed is None:
        failed = f"the process ended with {_ended(code)}; its last words are in {order.log}"
    return Outcome(failed=failed)


def _follow(
    child: subprocess.Popen[str], lines: queue.Queue[str | None], tell: Tell, stop: Callable[[], int | None]
) -> str | None:
    """Passes lines on until the child closes its stream; returns what it says failed."""
    failed, told = None, False
    while True:
        number = stop()
        if number is not None and not told:
            child.send_signal(number)
            told = True
        try:
            line = lines.get(timeout=0.2)
        except queue.Empty:
            continue
        if line is None:
            return failed
        try:
            values = json.loads(line)
        except ValueError:
            continue
        failed = values.get("failed", failed)
        tell(values)


def _ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, as when the system runs out of memory" if name == "SIGKILL" else name


def _own_path() -> str:
    """Where this package is imported from stands first, so that the child runs the same code."""
    own = str(Path(__file__).resolve().parents[2])
    rest = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != own]
    return os.pathsep.join([own, *rest])
