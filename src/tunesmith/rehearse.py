"""A dry run that really runs: the whole path of a recipe on its longest rows, in a folder that is thrown away.

read the rows, load, train, write a checkpoint, be killed, resume, merge, read back, answer

What fails here would have failed hours later. All rows are read, as the run will read them, so that the longest of all
are chosen and the forecast is that of the run. A child process trains and dies by its own hand, without cleaning up, as
when the power goes; this one goes on from its checkpoint and holds the step that both took against each other. Adapted
and merged model are opened anew, and held against each other too.
"""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith import inference, run
from tunesmith.adapters import relora, store
from tunesmith.data.prepare import Prepared, fingerprint
from tunesmith.data.types import Classified, Conversation, Example, Message
from tunesmith.errors import AdapterError, CheckpointError, Interrupted, MachineError, TunesmithError
from tunesmith.events import Event, StepDone
from tunesmith.models.load import stored_dtype
from tunesmith.models.room import is_out_of_memory
from tunesmith.models.session import Params
from tunesmith.models.settings import ModelSettings
from tunesmith.progress import seconds as in_words
from tunesmith.progress import size
from tunesmith.quant.quantised import storage_name
from tunesmith.recipe import Change, Resolved, from_dict
from tunesmith.session import Session, open_session
from tunesmith.train.budget import Budget
from tunesmith.train.settings import BUDGETS

STEPS, SAVED_AT, DIES_AT = 4, 2, 3
KILLED = 137
"""How a process ends that SIGKILL ended, as a shell tells it."""
ANSWER = Params(max_new_tokens=16)
ROWS, TOKENS = 3, 256
"""Rows, and tokens of each at most, behind which adapted and merged model are held against each other."""
LOSS_APART = 1e-3
"""How far the loss of a step that is taken again may be off, as a share, on a device that does not add in one order."""
LOGITS_APART, LOGITS_APART_ROUNDED = 1e-3, 0.05
"""Largest gap of a logit between adapted and merged model, as a share of the largest: in fp32, and where weights or
activations are of fewer bits."""


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
        made.forecast = scene.forecast
        for line in made.forecast:
            say(line)
    return made


class _Skipped(Exception):
    """A phase that this recipe does not have."""


@contextmanager
def _timed(phase: Phase) -> Iterator[None]:
    """Whatever goes wrong inside is what the phase says; only a person's wish to stop goes further."""
    start = time.perf_counter()
    try:
        yield
    except _Skipped as reason:
        phase.result, phase.text = "skipped", str(reason)
    except Interrupted as error:
        raise error.to_do("start the rehearsal again") from None
    except Exception as error:
        phase.result, phase.text = "failed", sentence(error)
    phase.seconds = time.perf_counter() - start
    _let_go()


def sentence(error: Exception) -> str:
    """Any error in the words of a phase."""
    if isinstance(error, TunesmithError):
        return str(error)
    what = "out of memory" if is_out_of_memory(error) else type(error).__name__
    return ": ".join(part for part in (what, str(error).strip().partition("\n")[0]) if part)


def _let_go() -> None:
    """The model of one phase makes room for that of the next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Scene:
    """What the phases hand on to each other."""

    def __init__(self, resolved: Resolved, folder: Path, trust_remote_code: bool) -> None:
        self.resolved, self.folder, self.trust = resolved, folder, trust_remote_code
        self.run_folder, self.merged = folder / "run", folder / "merged"
        self.short: Resolved
        self.prepared: Prepared
        self.steps: list[StepDone] = []
        self.forecast: list[str] = []

    def train_and_die(self) -> str:
        self.short = shortened(self.resolved, self.run_folder)
        script = {"recipe": self.short.recipe.explicit(), "folder": str(self.folder), "trust": self.trust}
        (self.folder / "script.json").write_text(json.dumps(script))
        command = [sys.executable, "-m", "tunesmith.rehearse", str(self.folder / "script.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        losses = self._losses()
        if done.returncode == 0 and not losses:
            return "what is trained takes no steps: there was nothing to be killed in"
        if done.returncode != KILLED:
            raise _unforeseen(done.returncode, self.folder / "error.txt", done.stderr, max(losses, default=0))
        return f"loss {losses[1]:.4f} to {losses[DIES_AT]:.4f}; a checkpoint after step {SAVED_AT}"

    def _losses(self) -> dict[int, float]:
        steps = self.folder / "steps.jsonl"
        lines = steps.read_text().splitlines() if steps.is_file() else []
        return {int(step): float.fromhex(loss) for step, loss in map(json.loads, lines)}

    def resume(self) -> str:
        def hear(event: Event) -> None:
            if isinstance(event, StepDone):
                self.steps.append(event)

        def choose(prepared: Prepared) -> Prepared:
            self.prepared = prepared
            return longest(prepared, self.short)

        trained = run.train(
            self.short, resume=True, trust_remote_code=self.trust, listeners=[hear], quiet=True, choose=choose
        )
        losses = self._losses()
        if not losses:
            raise _Skipped("what is trained takes no steps")
        self.forecast = self._forecast()
        again = next((event.loss for event in self.steps if event.step == DIES_AT), None)
        if again is None:
            what = f"step {DIES_AT} was not taken again: nothing was saved after step {SAVED_AT}"
            raise CheckpointError(what, fix="see whether the disk of output.folder can be written; then rehearse again")
        return taken_again(again, losses[DIES_AT], exact=trained.session.model.device.type == "cpu")

    def merge(self) -> str:
        try:
            store.refuse_unmergeable(self.run_folder / "adapter")
        except AdapterError as error:
            raise _Skipped(error.what) from None
        return inference.merge(self.run_folder, self.merged, trust_remote_code=self.trust, quiet=True)

    def answer(self) -> str:
        mine = self._heard(self.run_folder)
        if not self.merged.is_dir():
            return mine.answer
        theirs = self._heard(self.merged)
        gap = same_model(mine, theirs)
        said = "says the same" if mine.answer == theirs.answer else f"says {theirs.answer}"
        return f"{mine.answer}, and the merged model {said}: logits are off by {gap:.1e} of the largest"

    def _heard(self, source: Path) -> Heard:
        """What a model says that is opened anew. It is let go before the next one is."""
        _let_go()
        recipe = self.short.recipe
        session = open_session(
            str(source),
            device=recipe.model.device,
            dtype=recipe.model.dtype,
            system_turn=recipe.data.system_turn,
            trust_remote_code=self.trust,
            say=lambda text: None,
        )
        prompts, answer = self._prompts(session), "a class for each text"
        if session.head is None:
            made = session.generate(prompts[:1], ANSWER, adapters=[session.adapter])[0]
            answer = repr(session.text(made, ANSWER, session.adapter))
        is_compared = self.merged.is_dir()
        logits = [_next_logits(session, prompt) for prompt in prompts] if is_compared else []
        return Heard(prompts, answer, logits, _is_rounded(session) or (is_compared and self._is_merged_rounded()))

    def _is_merged_rounded(self) -> bool:
        return stored_dtype(ModelSettings(name=str(self.merged)), trust_remote_code=self.trust) != "float32"

    def _prompts(self, session: Session) -> list[list[int]]:
        """What a row asks, as the session writes it where it writes turns, and the first halves of a few rows."""
        halves = [example.token_ids[: max(1, len(example) // 2)] for example in self.prepared.train[:ROWS]]
        ids: list[list[int]] = [half[:TOKENS].tolist() for half in halves]
        if session.head is not None or not session.tokenizer.chat_template:
            return ids
        rows = (row.messages for row in self.prepared.held_out_rows if isinstance(row, Conversation))
        asked = list(takewhile(lambda turn: turn.role != "assistant", next(rows, ())))
        return [session.prompt_ids(asked or [Message("user", "Hello")], adapter=session.adapter), *ids]

    def _forecast(self) -> list[str]:
        """What the whole run will take, by the rate of its longest rows."""
        recipe, last = self.resolved.recipe, self.steps[-1]
        budget = Budget.of(recipe.train, run.built(recipe, self.prepared))
        memory = size(max(event.memory_bytes for event in self.steps))
        lines = [f"at its longest rows: {last.tokens_per_second:,.0f} tokens a second, {memory} of memory"]
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


def _unforeseen(returncode: int, known: Path, stderr: str, steps: int) -> TunesmithError:
    """Why the training process did not end as it was to."""
    if known.is_file():
        return MachineError(known.read_text())
    if returncode == 0:
        found = "the recipe's own rules ended it, as train.stop_above does"
        return MachineError(f"training ended after step {steps}, before it could be killed", found=found)
    how = f"by signal {-returncode}" if returncode < 0 else f"with exit code {returncode}"
    fix = "see whether memory ran out: the system kills what takes too much" if returncode < 0 else None
    return MachineError(f"the training process ended {how}", found="\n".join(stderr.split("\n")[-12:]).strip(), fix=fix)


def taken_again(again: float, before: float, *, exact: bool) -> str:
    """What a step says that was taken twice: on a CPU the same bits, elsewhere the same but for rounding."""
    if again == before:
        return f"step {DIES_AT} again: the same loss to the last bit"
    if exact or not math.isclose(again, before, rel_tol=LOSS_APART, abs_tol=1e-6):
        raise CheckpointError(
            f"step {DIES_AT} came out otherwise after the resume",
            found=f"loss {again!r}",
            expected=f"{before!r}" + ("" if exact else f", to {LOSS_APART:.1%}"),
        )
    return f"step {DIES_AT} again: loss {again:.6f} after {before:.6f}, as a GPU rounds"


@dataclass(frozen=True)
class Heard:
    """What a model says: its answer to the first prompt, and the logits [vocabulary] (of a head [outputs]) behind each.
    `is_rounded`: weights or activations are of fewer bits than fp32's."""

    prompts: list[list[int]]
    answer: str
    logits: list[Tensor]
    is_rounded: bool


def same_model(mine: Heard, theirs: Heard) -> float:
    """The largest gap of a logit between the adapted and the merged model, as a share of the largest."""
    if mine.prompts != theirs.prompts:
        raise AdapterError(
            "the merged model is asked in other tokens than the adapted one",
            found=f"{len(theirs.prompts[0])} tokens that end in {theirs.prompts[0][-8:]}",
            expected=f"{len(mine.prompts[0])} that end in {mine.prompts[0][-8:]}",
            fix="look at the chat template of the base: its tokenizer does not come back as it was written",
        )
    gaps = [_gap(one, other) for one, other in zip(mine.logits, theirs.logits, strict=True)]
    most = LOGITS_APART_ROUNDED if mine.is_rounded or theirs.is_rounded else LOGITS_APART
    if wrong := [gap for gap in gaps if not gap <= most]:
        raise AdapterError(
            "the merged model, opened anew, does not say what the adapted one does",
            found=f"logits behind {len(wrong)} of {len(gaps)} prompts are off by up to {max(wrong):.2%} of the largest",
            expected=f"at most {most:.1%}",
            fix="serve the adapter unmerged, and report this",
        )
    return max(gaps)


def _gap(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / one.abs().max()).item()


@torch.no_grad()
def _next_logits(session: Session, prompt: Sequence[int]) -> Tensor:
    """Logits of what comes after `prompt`, in fp32 on the CPU."""
    with session.switch.set_to(session.adapter):
        logits = session.model(input_ids=torch.tensor([prompt], device=session.model.device)).logits
    return logits.reshape(-1, logits.shape[-1])[-1].float().cpu()


def _is_rounded(session: Session) -> bool:
    is_wide = session.model.dtype in (torch.float32, torch.float64)
    return not is_wide or storage_name(session.model) != "plain"


def shortened(resolved: Resolved, folder: Path) -> Resolved:
    """The recipe of the rehearsal: a few steps with all that comes between steps, in a folder of its own."""
    recipe = resolved.recipe
    changes: dict[str, Any] = {**dict.fromkeys((f"train.{name}" for name in BUDGETS), None), "train.steps": STEPS}
    changes |= {"train.save_every": SAVED_AT, "train.stop_after_no_gain": None, "train.warmup": 0}
    changes |= {"train.evaluate_every": None if recipe.data.held_out is None else SAVED_AT}
    changes |= {"output.folder": str(folder), "output.report_to": [], "train.publish": "last"}
    if isinstance(recipe.adapter, relora.Settings):
        changes |= {"adapter.restart_every": SAVED_AT, "adapter.rewarm": min(recipe.adapter.rewarm, SAVED_AT - 1)}
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
    except Exception as error:
        (folder / "error.txt").write_text(sentence(error))
        raise SystemExit(1) from None


if __name__ == "__main__":
    child(Path(sys.argv[1]))
