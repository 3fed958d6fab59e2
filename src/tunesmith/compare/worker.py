"""One cell in a process of its own: `python -m tunesmith.compare.worker ORDER.json`.

A fresh process, so that its peak memory is its own, and that whatever goes wrong in it (a crash, the system's memory
killer) ends one cell and not the study. It trains by `run.train`, or goes on where a run stopped, then measures. What
happens goes to the study as lines of JSON on stdout; all else that is printed goes to stderr, which the study keeps.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from tunesmith.errors import TunesmithError

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Order:
    """What a worker is to do: plain values."""

    name: str
    folder: str
    """The run folder; of the base, where its measures go."""
    shared: str
    """A folder for what cells measure once for all."""
    recipe: dict[str, Any]
    """The settings that were given."""
    provenance: dict[str, str]
    source: str
    train: bool = True
    shots: int = 0
    measure: dict[str, Any] | None = None
    trust_remote_code: bool = False
    until: int | None = None
    """Train only until so many updates are done; None: the whole budget."""
    rivals: list[dict[str, float]] = field(default_factory=list)
    """Held-out losses by step of other runs: this one stops where it falls behind their median."""

    @property
    def log(self) -> Path:
        return Path(self.shared).parent / "logs" / f"{self.name}.log"


def trained(folder: Path) -> bool:
    """Whether the run in `folder` is finished."""
    try:
        status = json.loads((folder / "summary.json").read_text())["status"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(status == "finished") and (folder / "adapter" / "adapter_config.json").is_file()


def reached(folder: Path) -> int:
    """How many updates the run in `folder` has done by the time it last stopped as it was told to."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return 0
    return int(summary["step"]) if summary.get("status") == "finished" else 0


def measured(folder: Path, fingerprint: str | None) -> bool:
    """Whether `folder` holds measures of this fingerprint (None: none are wanted), and a number for each row of them:
    those that earlier versions wrote may hold null for a loss that was not finite."""
    if fingerprint is None:
        return True
    try:
        found = json.loads((folder / "measures.json").read_text())
        return bool(found["fingerprint"] == fingerprint) and None not in _by_row(found)
    except (OSError, ValueError, KeyError):
        return False


def _by_row(measures: Mapping[str, Any]) -> list[float | None]:
    """Every loss and score."""
    losses = [measures.get("loss"), *(measures.get("forget") or {}).values()]
    values = [loss["sum"] for loss in losses if loss] + list(measures.get("scores", {}).values())
    values += [own["values"] for own in measures.get("by_row", {}).values()]
    return [value for own in values for value in own]


def work(order: Order, tell: Tell) -> None:
    """The order, done in this process. Raises what stops it."""
    from tunesmith import run
    from tunesmith.compare.measure import Wanted, measure
    from tunesmith.compare.pause import Pause
    from tunesmith.events import Event, Listener
    from tunesmith.recipe import from_dict
    from tunesmith.session import open_session

    def listen(event: Event) -> None:
        tell({"event": type(event).__name__} | vars(event))

    def say(text: str) -> None:
        tell({"say": text})

    folder = Path(order.folder)
    resolved = replace(from_dict(order.recipe, name=order.name), provenance=order.provenance, source=order.source)
    listeners: list[Listener] = [listen]
    if order.until is not None:
        rivals = [{int(step): loss for step, loss in rival.items()} for rival in order.rivals]
        listeners.append(Pause(order.until, rivals))
    if order.train and (not trained(folder) if order.until is None else reached(folder) < order.until):
        run.train(resolved, resume=True, trust_remote_code=order.trust_remote_code, listeners=listeners, quiet=True)
    if order.measure is None:
        return
    given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in order.measure.items()}
    wanted = Wanted(**given)
    if measured(folder, wanted.fingerprint):
        return
    folder.mkdir(parents=True, exist_ok=True)
    recipe, source = resolved.recipe, str(folder)
    if order.train:
        session = open_session(source, trust_remote_code=order.trust_remote_code, say=say)
    else:
        session = open_session(
            recipe.model.name,
            device=recipe.model.device,
            dtype=recipe.model.dtype,
            storage=recipe.model.storage,
            adapters=[] if recipe.model.adapter is None else [recipe.model.adapter],
            template=recipe.model.template,
            revision=recipe.model.revision,
            system_turn=recipe.data.system_turn,
            trust_remote_code=order.trust_remote_code,
            say=say,
        )
        if recipe.model.adapter is not None:  # what training goes on from answers, and not what lies beneath
            session.adapter = session.adapters[-1]
    measure(session, recipe, wanted, folder, Path(order.shared), shots=order.shots, is_tuned=order.train, say=say)


def main(path: str) -> int:
    """The order in a file; returns the exit code."""
    out = _own_stdout()
    lock = threading.Lock()

    def tell(values: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(values, default=str) + "\n")
            out.flush()

    _stop_with_parent()
    try:
        work(Order(**json.loads(Path(path).read_text())), tell)
    except TunesmithError as error:
        print(f"{error.public_name}: {error}", file=sys.stderr)
        tell({"failed": str(error), "kind": error.public_name})
        return error.exit_code
    except KeyboardInterrupt:
        tell({"failed": "interrupted", "kind": "Interrupted"})
        return 128 + signal.SIGINT
    except Exception as error:
        import traceback

        traceback.print_exc()
        tell({"failed": f"{type(error).__name__}: {error}".partition("\n")[0], "kind": type(error).__name__})
        return 1
    return 0


def _own_stdout() -> IO[str]:
    """The stream to the study; from here on whatever else writes to stdout writes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _stop_with_parent() -> None:
    """The study holds our stdin open: where it ends, the study is gone, and so are we, after the step at hand."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
