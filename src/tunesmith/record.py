"""The run folder: one run's recipe, environment, metrics, summary, picture and model card.

    lock              held while a run works here, with its process id
    recipe.yaml       every setting, each with where it came from; provenance.json says the same to programs
    environment.json  machine, versions, command line; never an environment variable
    metrics.jsonl     one line per step, evaluation and note
    summary.json      what came out of it; `status` is finished, interrupted, failed, or unfinished (at work, or killed)
    trackers.json     by service, the id of this run there
    loss.png          the curves, of a run that was broken off too
    README.md         the model card

Checkpoints and the adapter stand beside these, written by those who make them. Files are replaced whole: whoever reads
one sees the old or the new, never half of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import IO, Any, Literal, Protocol, Self

from tunesmith import machine
from tunesmith.atomic import finite, guarded, write_file, write_json
from tunesmith.errors import CheckpointError, MachineError, TunesmithError
from tunesmith.events import BrokenOff, Ended, Evaluated, Event, Noted, Saved, Started, StepDone
from tunesmith.settings import Settings

FREE_TO_CHANGE = ("output", "train.save_every", "train.keep_checkpoints")
"""Settings that a resumed run may have otherwise: no weight depends on them."""

TRACKERS = "trackers.json"

BESIDES = ("lock", "tensorboard", "wandb")
"""What may stand in the folder before its run does."""


class OutputSettings(Settings):
    """The `output` section of a recipe."""

    folder: str | None = None
    """The run folder; null: runs/ and the run's name."""
    name: str | None = None
    """What the run is called; null: as the recipe's file."""
    report_to: tuple[Literal["wandb", "trackio", "tensorboard", "mlflow"], ...] = ()
    """Services that get the numbers too; each needs its extra: pip install 'tunesmith[wandb]'."""
    project: str | None = None
    """What these services call the runs that belong together; of wandb also team/project. null: tunesmith."""
    licence: str | None = None
    """Licence of what is trained, as the model card states it (apache-2.0, cc-by-4.0 …)."""


class Written(Protocol):
    """What a run folder writes down of a recipe."""

    @property
    def provenance(self) -> dict[str, str]: ...

    @property
    def plain(self) -> dict[str, dict[str, Any]]: ...

    @property
    def yaml(self) -> str: ...


class Run:
    """A run folder that this process holds. A listener: give it to the loop."""

    def __init__(self, folder: Path, resolved: Written, lock: int) -> None:
        self.folder, self.resolved, self._lock = folder, resolved, lock
        self.facts: dict[str, Any] = {}
        self._metrics: IO[str] | None = None
        self._early: list[dict[str, Any]] = []
        self._kept: set[tuple[str, int]] = set()
        self._last_save: dict[str, Any] | None = None
        self._last_step: dict[str, Any] = {}
        self._has_ended = False

    @classmethod
    def create(cls, folder: str | os.PathLike[str], resolved: Written, resume: bool = False) -> Self:
        """Takes `folder` for this run, or says why it may not. With `resume`, goes on in it where a run has begun."""
        path = Path(folder)
        with guarded(path):
            path.mkdir(parents=True, exist_ok=True)
        lock = locked(path)
        try:
            _may_run_here(path, resolved, resume)
            run = cls(path, resolved, lock)
            run._write_beginnings(begun=_has_begun(path))
        except BaseException:
            os.close(lock)
            raise
        return run

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def picture(self) -> Path:
        return self.folder / "loss.png"

    def trackers(self) -> dict[str, str]:
        """By service, the id that this run had there so far."""
        path = self.folder / TRACKERS
        if not path.is_file():
            return {}
        try:
            return {str(name): str(run_id) for name, run_id in json.loads(path.read_text()).items()}
        except (ValueError, AttributeError) as error:
            raise CheckpointError(
                "the services' ids of this run cannot be read",
                where=str(path),
                found=str(error),
                fix="put the file back, or delete it: then the services get a run more",
            ) from None

    def remember_trackers(self, ids: dict[str, str]) -> None:
        """Keeps the ids for a run that goes on here."""
        if ids:
            write_json(self.folder / TRACKERS, ids)

    def describe(self, **facts: Any) -> None:
        """Adds to what summary and model card say; see `tunesmith.card` for the names that the card knows."""
        self.facts |= facts

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._cut_metrics(event.first_step)
            if event.first_step:
                self._last_save = {"step": event.first_step, "path": f"checkpoints/step-{event.first_step:06d}"}
            begun = {"status": "unfinished", "step": event.first_step, "train_seconds": event.seconds_before}
            write_json(self.folder / "summary.json", begun | {"last_checkpoint": self._last_save} | self.facts)
        elif isinstance(event, StepDone):
            left_out = ("num_steps", "seconds_left", *(() if event.metrics else ("metrics",)))
            self._last_step = _numbers(event, leave_out=left_out)
            self._write_line({"event": "step"} | self._last_step)
        elif isinstance(event, Evaluated):
            self._write_line({"event": "evaluation"} | _numbers(event))
        elif isinstance(event, Noted):
            self._write_line({"event": "note", "text": event.text})
        elif isinstance(event, Saved):
            self._last_save = {"step": event.step, "path": os.path.relpath(event.path, self.folder)}
            if self._metrics is not None:
                os.fsync(self._metrics.fileno())
        elif isinstance(event, Ended):
            self._finish(event)
        elif isinstance(event, BrokenOff) and not self._has_ended:
            self._leave(event)

    def close(self) -> None:
        """Lets the folder go; another run may take it."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_beginnings(self, begun: bool) -> None:
        path = self.folder / "environment.json"
        environment = machine.describe() | {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        if begun and path.is_file():
            with contextlib.suppress(ValueError, AttributeError, TypeError):  # a damaged one is no reason not to train
                before = json.loads(path.read_text())
                environment["before"] = [*before.pop("before", []), before]
        # First, since this is how a run's folder is known again, whatever ends the run.
        write_json(
            self.folder / "provenance.json", {"recipe": self.resolved.plain, "provenance": self.resolved.provenance}
        )
        write_file(self.folder / "recipe.yaml", self.resolved.yaml)
        write_json(path, environment)

    def _cut_metrics(self, first_step: int) -> None:
        """Leaves of metrics.jsonl what an unbroken run has written by the time it has done `first_step` steps."""
        path = self.folder / "metrics.jsonl"
        kept: list[str] = []
        end = 0
        self._kept.clear()
        for line in path.read_text().splitlines() if path.is_file() and first_step else []:
            try:
                values = json.loads(line)
                step = values.get("step")
            except ValueError:  # torn by whatever ended the run
                break
            if step is not None and step > first_step:
                break
            kept.append(line)
            if step is not None:
                end = len(kept)
                self._last_step = values if values["event"] == "step" else self._last_step
                self._kept.add((values["event"], step))
        write_file(path, "".join(f"{line}\n" for line in kept[:end]))
        with guarded(path):
            self._metrics = path.open("a", encoding="utf-8")
        for note in self._early:
            if json.dumps(note) not in kept[:end]:
                self._write_line(note)
        self._early.clear()

    def _write_line(self, values: dict[str, Any]) -> None:
        if self._metrics is None:  # a note before it is known from where the run goes on
            self._early.append(values)
            return
        if (values["event"], values.get("step")) in self._kept:  # an evaluation that the checkpoint did not know of
            return
        with guarded(self.folder / "metrics.jsonl"):
            self._metrics.write(json.dumps(finite(values)) + "\n")
            self._metrics.flush()

    def _finish(self, event: Ended) -> None:
        from tunesmith.card import write_card

        self._summarise(event, "unfinished")  # the card is made from it
        self._draw()
        write_card(self.folder)
        self._summarise(event, "finished")  # said last: by now all of it is there
        self._has_ended = True

    def _leave(self, event: BrokenOff) -> None:
        """What can be seen of a run that did not end; an error here would hide the one that ended it."""
        with contextlib.suppress(TunesmithError):
            self._summarise(event, event.status)
        if self._last_step:
            with contextlib.suppress(TunesmithError):
                self._draw(f"{self.folder.absolute().name}, {event.status} after step {event.step}")

    def _draw(self, title: str | None = None) -> None:
        """The picture; a matplotlib that does not work here is no reason to call a whole run failed."""
        try:
            from tunesmith.plot import plot_run

            plot_run(self.folder / "metrics.jsonl", self.picture, title)
        except TunesmithError:
            raise
        except Exception as error:
            warnings.warn(f"{self.picture} could not be drawn: {error}", RuntimeWarning, stacklevel=2)

    def _summarise(self, event: Ended | BrokenOff, status: str) -> None:
        summary = {"status": status} | _numbers(event) | {"last_checkpoint": self._last_save}
        if self._last_step:
            summary["final_loss"] = self._last_step["loss"]
            summary["peak_memory_bytes"] = self._last_step["memory_bytes"]
        if event.train_seconds > 0:
            summary["tokens_per_second"] = event.num_tokens / event.train_seconds
        write_json(self.folder / "summary.json", summary | self.facts)


def locked(folder: Path) -> int:
    """A descriptor that holds the folder's lock; it goes with the process, however that ends."""
    path = folder / "lock"
    with guarded(path):
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise MachineError(
                "this file system cannot lock files", where=str(path), found=error.strerror, fix="use a local folder"
            ) from None
        raise CheckpointError(
            "another run is at work in this folder",
            where=str(folder),
            found=f"process {holder}",
            fix="wait for it, or give this run its own: output.folder=…",
        ) from None
    try:
        with guarded(path):
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(lock)
        raise
    return lock


def finished(folder: Path) -> bool:
    """Whether the run in `folder` says that it has ended; what it made may be gone again."""
    try:
        return bool(json.loads((folder / "summary.json").read_text())["status"] == "finished")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _has_begun(folder: Path) -> bool:
    """Whether a run has trained here; one that failed before its first step has not."""
    metrics = folder / "metrics.jsonl"
    return (metrics.is_file() and metrics.stat().st_size > 0) or any((folder / "checkpoints").glob("step-*"))


def _may_run_here(folder: Path, resolved: Written, resume: bool) -> None:
    for torn in folder.iterdir():  # the lock is ours: whoever wrote it is gone
        if re.fullmatch(r"\.(\w+\.)+\d+", torn.name):
            torn.unlink(missing_ok=True)
    inside = sorted(entry.name for entry in folder.iterdir() if entry.name not in BESIDES)
    if not inside:
        return
    record = folder / "provenance.json"
    if not record.is_file():
        raise CheckpointError(
            "the folder is not empty, and not a run's",
            where=str(folder),
            found=", ".join(inside[:5]) + (" …" if len(inside) > 5 else ""),
            fix="give the run a folder of its own: output.folder=…",
        )
    if not _has_begun(folder):
        return
    if not resume:
        raise CheckpointError(
            "a run has been here already",
            where=str(folder),
            fix="go on with it: --resume (in Python: resume=True); or give this run its own folder: output.folder=…",
        )
    try:
        then = json.loads(record.read_text())["recipe"]
        differing = _differences(then, json.loads(json.dumps(resolved.plain)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            "what this run was begun with cannot be read",
            where=str(record),
            found=f"{type(error).__name__}: {error}",
            fix="put the file back; or start anew, in a folder of its own: output.folder=…",
        ) from None
    if differing:
        raise CheckpointError(
            "the run that began here has another recipe",
            where=str(folder),
            notes={"differs in": "; ".join(differing)},
            fix="give these settings as they were, to go on with it; or start anew, in another folder: output.folder=…",
        )


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings that differ and may not, as "train.seed (was 0, now 1)"."""
    differing = []
    for section in dict.fromkeys([*then, *now]):
        before, after = then.get(section, {}), now.get(section, {})
        for key in dict.fromkeys([*before, *after]):
            free = section in FREE_TO_CHANGE or f"{section}.{key}" in FREE_TO_CHANGE
            if not free and before.get(key) != after.get(key):
                differing.append(f"{section}.{key} (was {before.get(key)}, now {after.get(key)})")
    return differing


def _numbers(event: Event, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    return {key: value for key, value in vars(event).items() if key not in leave_out}
