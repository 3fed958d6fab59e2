"""A dry run that really runs: the whole path of a recipe on its longest rows, in a folder that is thrown away.

read the rows, load, train, write a checkpoint, be killed, resume, merge, read back, answer

What fails here would have failed hours later. A child process trains and dies by its own hand, without cleaning up, as
when the power goes; this one goes on from its checkpoint and holds the step that both took against each other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from tunesmith import inference, run
from tunesmith.adapters import store
from tunesmith.data.prepare import Prepared, fingerprint
from tunesmith.data.types import Classified, Conversation, Example
from tunesmith.errors import AdapterError, CheckpointError, MachineError, TunesmithError
from tunesmith.events import Event, StepDone
from tunesmith.models.session import Params
from tunesmith.progress import seconds as in_words
from tunesmith.progress import size
from tunesmith.recipe import Change, Resolved, from_dict
from tunesmith.session import open_session
from tunesmith.train.budget import Budget

STEPS, SAVED_AT, DIES_AT = 4, 2, 3
MOST_ROWS = 20_000
"""Rows that are read for it at most."""
KILLED = 137
"""How a process ends that SIGKILL ended, as a shell tells it."""
ANSWER = Params(max_new_tokens=16)


@dataclass
class Phase:
    """One stretch of the path: how long it took, and what was found."""

    name: str
    seconds: float = 0.0
    text: str = ""
    result: str = "ok"
    """ok, skipped, or failed."""


@dataclass
class Rehearsal:
    phases: list[Phase] = field(default_factory=list)
    forecast: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(phase.result != "failed" for phase in self.phases)

    @property
    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def rehearse(
    resolved: Resolved, *, trust_remote_code: bool = False, say: Callable[[str], object] = lambda line: None
) -> Rehearsal:
    """The whole path of a recipe, phase by phase, up to the first that fails. `say` hears of each as it ends."""
    made = Rehearsal()
    with tempfile.TemporaryDirectory(prefix="tunesmith-rehearsal-") as folder:
        scene = _Scene(resolved, Path(folder), trust_remote_code)
        acts = {
            f"train {DIES_AT} steps and be killed": scene.train_and_die,
            "resume from the checkpoint": scene.resume,
            "merge, write and read back": scene.merge,
            "answer": scene.answer,
        }
        for name, act in acts.items():
            phase = Phase(name)
            made.phases.append(phase)
            with _timed(phase):
                phase.text = act()
            say(f"{phase.result:<7}  {phase.name} … {in_words(phase.seconds)}\n         {phase.text}")
            if phase.result == "failed":
                return made
        made.forecast = scene.forecast()
        for line in made.forecast:
            say(line)
    return made


class _Skipped(Exception):
    """A phase that this recipe does not have."""


@contextmanager
def _timed(phase: Phase) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    except _Skipped as reason:
        phase.result, phase.text = "skipped", str(reason)
    except TunesmithError as error:
        phase.result, phase.text = "failed", str(error)
    phase.seconds = time.perf_counter() - start


class _Scene:
    """What the phases hand on to each other."""

    def __init__(self, resolved: Resolved, folder: Path, trust_remote_code: bool) -> None:
        self.resolved, self.folder, self.trust = resolved, folder, trust_remote_code
        self.short = shortened(resolved, folder / "run")
        self.prepared: Prepared | None = None
        self.steps: list[StepDone] = []

    @property
    def run_folder(self) -> Path:
        return self.folder / "run"

    def train_and_die(self) -> str:
        script = {"recipe": self.short.recipe.explicit(), "folder": str(self.folder), "trust": self.trust}
        (self.folder / "script.json").write_text(json.dumps(script))
        command = [sys.executable, "-m", "tunesmith.rehearse", str(self.folder / "script.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != KILLED:
            said = done.stderr.strip().splitlines()
            known = self.folder / "error.txt"
            text = known.read_text() if known.is_file() else "\n".join(said[-12:])
            raise MachineError(text or f"the training process ended with {done.returncode}")
        losses = self._losses()
        return f"loss {losses[1]:.4f} to {losses[DIES_AT]:.4f}; a checkpoint after step {SAVED_AT}"

    def _losses(self) -> dict[int, float]:
        lines = (self.folder / "steps.jsonl").read_text().splitlines()
        return {int(step): float.fromhex(loss) for step, loss in map(json.loads, lines)}

    def resume(self) -> str:
        def hear(event: Event) -> None:
            if isinstance(event, StepDone):
                self.steps.append(event)

        def choose(prepared: Prepared) -> Prepared:
            self.prepared = prepared
            return longest(prepared, self.short)

        run.train(self.short, resume=True, trust_remote_code=self.trust, listeners=[hear], quiet=True, choose=choose)
        again = next((event.loss for event in self.steps if event.step == DIES_AT), None)
        before = self._losses()[DIES_AT]
        if again is None:
            raise CheckpointError(f"step {DIES_AT} was not taken again: nothing was saved after step {SAVED_AT}")
        if again != before:
            device = self.short.recipe.model.device
            if device in ("auto", "cpu") and _on_cpu():
                raise CheckpointError(
                    f"step {DIES_AT} came out otherwise after the resume", found=f"{again!r}", expected=f"{before!r}"
                )
            return f"step {DIES_AT} again: loss {again:.6f} after {before:.6f}, as a GPU rounds"
        return f"step {DIES_AT} again: the same loss to the last bit"

    def merge(self) -> str:
        adapter = self.run_folder / "adapter"
        try:
            store.refuse_unmergeable(adapter)
        except AdapterError as error:
            raise _Skipped(error.what) from None
        out = self.folder / "merged"
        return inference.merge(self.run_folder, out, trust_remote_code=self.trust, quiet=True)

    def answer(self) -> str:
        assert self.prepared is not None
        rows = [row for row in self.prepared.held_out_rows if isinstance(row, Conversation)]
        prompt = next((row.messages[:-1] for row in rows if len(row.messages) > 1), None)
        quiet: Callable[[str], object] = lambda text: None  # noqa: E731
        with_adapter = open_session(str(self.run_folder), trust_remote_code=self.trust, say=quiet)
        if with_adapter.head is not None:
            return "the classifier opens in a fresh session"
        text = [turn for turn in prompt or () if turn.role != "assistant"]
        messages = list(text) or "Hello"
        mine = with_adapter.answer([messages], params=ANSWER)[0]
        merged = self.folder / "merged"
        if not merged.is_dir():
            return f"{mine!r}"
        own = self.run_folder / "adapter"
        template = self.short.recipe.model.template if not (own / "tokenizer_config.json").is_file() else None
        other = open_session(str(merged), template=template, trust_remote_code=self.trust, say=quiet)
        theirs = other.answer([messages], params=ANSWER)[0]
        same = "and the merged model says the same" if mine == theirs else f"the merged model, rounded anew, {theirs!r}"
        return f"{mine!r}, {same}"

    def forecast(self) -> list[str]:
        """What the whole run will take, by the rate of its longest rows."""
        assert self.prepared is not None
        recipe, last = self.resolved.recipe, self.steps[-1]
        budget = Budget(recipe.train, run.built(recipe, self.prepared).steps_per_epoch)
        lines = [f"at its longest rows: {last.tokens_per_second:,.0f} tokens a second, {size(self._peak())} of memory"]
        if budget.num_steps is None:
            lines.append(f"the run: {recipe.train.minutes:g} minutes of training, as the recipe says")
        elif budget.steps_per_epoch:
            passes = budget.num_steps / budget.steps_per_epoch
            tokens = passes * sum(map(len, self.prepared.train))
            time_needed = in_words(tokens / last.tokens_per_second)
            lines.append(
                f"the run: {budget.num_steps:,} steps over {tokens:,.0f} tokens, about {time_needed} of training"
            )
        return lines

    def _peak(self) -> int:
        return max(event.memory_bytes for event in self.steps)


def _on_cpu() -> bool:
    import torch

    return not torch.cuda.is_available() and not torch.backends.mps.is_available()


def shortened(resolved: Resolved, folder: Path) -> Resolved:
    """The recipe of the rehearsal: a few steps with all that comes between steps, in a folder of its own."""
    recipe = resolved.recipe
    changes: dict[str, Any] = {"train.epochs": None, "train.minutes": None, "train.steps": STEPS}
    changes |= {"train.save_every": SAVED_AT, "train.stop_after_no_gain": None, "train.warmup": 0}
    changes |= {"train.evaluate_every": None if recipe.data.held_out is None else SAVED_AT}
    changes |= {"output.folder": str(folder), "output.report_to": [], "train.publish": "last"}
    if recipe.data.limit is None:
        changes["data.limit"] = MOST_ROWS
    if getattr(recipe.adapter, "restart_every", None) is not None:
        changes["adapter.restart_every"] = SAVED_AT
    told: list[Change] = [(key, value, "the rehearsal") for key, value in changes.items()]
    return from_dict(recipe.explicit(), name=resolved.name, source=resolved.source, changes=told)


def longest(prepared: Prepared, resolved: Resolved) -> Prepared:
    """The longest rows, enough for two steps, and one of each class; the sides of a pair stay together."""
    train = resolved.recipe.train
    tokens = 2 * (train.batch_tokens or 0)
    chosen = _longest(prepared.train, 2 * (train.batch_size or 1), tokens)
    held_out = _longest(prepared.held_out, train.batch_size or 4, 0)
    there = {example.origin for example in held_out}
    rows = [row for row in prepared.held_out_rows if row.origin in there]
    return replace(
        prepared, train=chosen, held_out=held_out, held_out_rows=rows, fingerprint=fingerprint(chosen, held_out)
    )


def _longest(examples: list[Example], least_rows: int, least_tokens: int) -> list[Example]:
    units = [list(same) for _, same in groupby(examples, key=lambda example: example.origin)]
    by_length = sorted(range(len(units)), key=lambda place: (-sum(map(len, units[place])), place))
    classes: dict[tuple[str, ...], int] = {}
    for place, unit in enumerate(units):
        if isinstance(unit[0], Classified):
            classes.setdefault(unit[0].labels, place)
    chosen, taken = dict.fromkeys(classes.values()), 0
    for place in by_length:
        if len(chosen) >= least_rows and taken >= least_tokens:
            break
        chosen[place] = None
        taken += sum(map(len, units[place]))
    return [example for place in sorted(chosen) for example in units[place]]


def child(script: Path) -> None:
    """The process that trains and dies: `python -m tunesmith.rehearse SCRIPT`."""
    said = json.loads(script.read_text())
    folder = Path(said["folder"])

    def hear(event: Event) -> None:
        if isinstance(event, StepDone):
            with (folder / "steps.jsonl").open("a") as steps:
                steps.write(json.dumps([event.step, event.loss.hex()]) + "\n")
            if event.step == DIES_AT:
                os._exit(KILLED)

    short = from_dict(said["recipe"])
    try:
        run.train(
            short,
            trust_remote_code=said["trust"],
            listeners=[hear],
            quiet=True,
            choose=lambda prepared: longest(prepared, short),
        )
    except TunesmithError as error:
        (folder / "error.txt").write_text(str(error))
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    child(Path(sys.argv[1]))
