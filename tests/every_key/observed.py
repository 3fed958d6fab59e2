"""What can be seen of a recipe, cheapest first: its rows, their order, a first gradient, a short run and what it left.

Each `See` takes a resolved recipe and gives plain values; where the recipe is refused, the refusal is what is seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tunesmith import run
from tunesmith.assemble import model_of
from tunesmith.data.cache.plain_values import plain
from tunesmith.errors import TunesmithError
from tunesmith.events import Ended, Evaluated, Event, Saved, Started, StepDone
from tunesmith.machine import cache_folder
from tunesmith.models.policy import Policy
from tunesmith.plan import main as planning
from tunesmith.plan.memory import Memory
from tunesmith.progress import Progress
from tunesmith.recipe import Resolved, from_dict
from tunesmith.reporters import REPORTERS, Reporter
from tunesmith.train.budget import Budget
from tunesmith.train.loop import Job

MICRO_TOKENS = 1024
REL, ABS = 1e-5, 1e-8
"""Within these, two numbers are the same: rounding is not what a key changes."""
See = Callable[["Home", Resolved], Any]


@dataclass(frozen=True)
class Case:
    """Another value of a key, where it shows, and what must be set (on both sides) for it to mean something."""

    value: Any
    see: See
    beside: Mapping[str, Any] = field(default_factory=dict)
    """By section.key. The key itself may be among them: its value on the other side."""
    needs: str | None = None
    """A package without which the value is refused."""


@dataclass(frozen=True)
class Refused:
    said: str


@dataclass
class Home:
    """A folder with a model and rows ("@/…" in values), and what was seen of recipes so far."""

    folder: Path
    seen: dict[str, Any] = field(default_factory=dict)
    number: int = 0

    def resolved(self, values: Mapping[str, Any]) -> Resolved:
        return from_dict(self.placed(values))

    def placed(self, value: Any) -> Any:
        """With the folder's path for "@"."""
        if isinstance(value, Mapping):
            return {key: self.placed(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.placed(inner) for inner in value]
        return value.replace("@/", f"{self.folder}/") if isinstance(value, str) else value

    def fresh(self) -> Path:
        self.number += 1
        return self.folder / "made" / str(self.number)

    def look(self, see: See, values: Mapping[str, Any], *, anew: bool = False) -> Any:
        """What is seen of a recipe; a second look is free, unless it is to be `anew`."""
        key = f"{see.__name__} {json.dumps(values, sort_keys=True)}"
        if anew or key not in self.seen:
            with own_cache(self.fresh()):
                try:
                    self.seen[key] = see(self, self.resolved(values))
                except TunesmithError as error:
                    self.seen[key] = Refused(str(error))
        return self.seen[key]


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(folder))
        yield


def same(one: Any, other: Any) -> bool:
    """Equal but for rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=REL, abs_tol=ABS) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def sketch(tensors: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """Of each tensor its shape, its size, and a sum that knows where each number stands."""
    made = {}
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().double().flatten()
        wave = torch.sin(torch.arange(1, len(flat) + 1, dtype=torch.float64))
        made[name] = [list(tensor.shape), float(flat.abs().sum()), float(flat @ wave)]
    return made


# ---- what is seen before any weight is read --------------------------------------------------------------------------


def rows(home: Home, resolved: Resolved) -> Any:
    """What became of the rows: every token and weight of them, counts, notes."""
    with Progress(quiet=True) as quiet:
        _, made = run.read_rows(resolved.recipe, False, quiet)
    names = ("fingerprint", "format", "notes", "counts", "held_out_counts", "sources")
    return {name: plain(getattr(made, name)) for name in names}


def order(home: Home, resolved: Resolved) -> Any:
    """Which rows the first steps visit."""
    with Progress(quiet=True) as quiet:
        _, made = run.read_rows(resolved.recipe, False, quiet)
    objective = run.built(resolved.recipe, made)
    steps = islice(objective.steps(cast(Policy, None)), 6)
    visited = [[one.origin.row for one in step.examples] for step in steps]
    return objective.steps_per_epoch, visited


def rows_of_the_hub(home: Home, resolved: Resolved) -> Any:
    """The rows, where the hub has for every subset and split others."""

    def load_dataset(name: str, subset: str | None = None, *, split: str, **_: Any) -> list[dict[str, str]]:
        return [{"prompt": f"{name} {subset} {number}", "completion": split} for number in range(9)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.data.reading.hub.hub_answers", lambda: True)
        patch.setattr("datasets.load_dataset", load_dataset)
        return rows(home, resolved)


def rows_by_a_cached_model(home: Home, resolved: Resolved) -> Any:
    """The rows, where the hub's client has two revisions of a model in its cache and no network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home.folder / "hub"))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        return rows(home, resolved)


def where(home: Home, resolved: Resolved) -> Any:
    return resolved.folder


# ---- what is seen of a model -----------------------------------------------------------------------------------------


def first(home: Home, resolved: Resolved) -> Any:
    """The adapter as it begins, its learning rates, what the objective says, and the gradient of a first step."""
    recipe = resolved.recipe
    with Progress(quiet=True) as quiet:
        tokenizer, made = run.read_rows(recipe, False, quiet)
        objective = run.built(recipe, made)
        budget = Budget(recipe.train, objective.steps_per_epoch)
        _, policy, adapter_set = model_of(recipe, tokenizer, False, None, quiet, objective.head)
        job = Job.of(adapter_set, lambda folder: None)
        begun = sketch(job.state())
        told = objective.begin(
            policy, num_steps=budget.num_steps, max_tokens=MICRO_TOKENS, cache=cache_folder(), stage=quiet.stage
        )
    seen: list[Any] = [objective.steps_per_epoch, begun, sketch(job.state()), dict(job.multipliers), list(told)]
    seen.append(sorted(path.name for path in cache_folder().glob("*")))
    torch.manual_seed(recipe.train.seed)
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    block = next(module for name, module in policy.model.named_modules() if name.endswith("mlp"))
    block.register_forward_pre_hook(count)
    for step in islice(objective.steps(policy), 1 if objective.steps_per_epoch else 0):
        for batch in objective.micro_batches(step, MICRO_TOKENS):
            found = objective.loss(policy, batch)
            total = torch.stack([value / step.denominators[name] for name, value in found.sums.items()]).sum()
            total.backward()
            seen += [total.item(), {name: float(value) for name, value in found.metrics.items()}]
        seen += [step.metrics, step.notes, passes]
        seen.append(sketch({name: one.grad for name, one in job.parameters.items() if one.grad is not None}))
    return seen


@dataclass(frozen=True)
class Ran:
    """A run and what it left."""

    folder: Path
    cache: Path
    events: Sequence[Event]
    state: Mapping[str, Tensor]

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def ran(home: Home, resolved: Resolved) -> Ran:
    folder, told = home.fresh(), list[Event]()
    output = resolved.recipe.output.model_copy(update={"folder": str(folder)})
    recipe = resolved.recipe.model_copy(update={"output": output})
    own = Resolved(recipe, resolved.provenance, resolved.name, resolved.source)
    made = run.train(own, listeners=[told.append], quiet=True)
    return Ran(folder, cache_folder(), told, made.session.sets["trained"].state())


def steps(home: Home, resolved: Resolved) -> Any:
    """The numbers of every step, and the adapter that is published."""
    made = ran(home, resolved)
    names = ("step", "epoch", "loss", "learning_rate", "grad_norm", "num_tokens", "num_learned", "metrics")
    return [[getattr(one, name) for name in names] for one in made.of(StepDone)], sketch(made.state)


def events(home: Home, resolved: Resolved) -> Any:
    """How long the run was to be and was, after which steps it evaluated and saved, and why it ended."""
    made = ran(home, resolved)
    started, ended = made.of(Started)[0], made.of(Ended)[0]
    return {
        "planned": (started.num_steps, started.minutes),
        "evaluated": [one.step for one in made.of(Evaluated)],
        "saved": [one.step for one in made.of(Saved)],
        "ended": (ended.step, ended.reason),
    }


def planned(home: Home, resolved: Resolved) -> Any:
    """How long the run was to be: what is said before the first step, after which it stops."""
    told: list[Started] = []

    def listen(event: Event) -> str | None:
        if isinstance(event, Started):
            told.append(event)
        return "stop" if isinstance(event, StepDone) else None

    output = resolved.recipe.output.model_copy(update={"folder": str(home.fresh())})
    own = Resolved(resolved.recipe.model_copy(update={"output": output}), resolved.provenance, "run", "recipe")
    run.train(own, listeners=[listen], quiet=True)
    return [(one.num_steps, one.minutes) for one in told]


def files(home: Home, resolved: Resolved) -> Any:
    """Which files stand in the run folder, and which folders in the cache."""
    made = ran(home, resolved)
    there = sorted(str(path.relative_to(made.folder)) for path in made.folder.rglob("*"))
    return there, sorted(path.name for path in made.cache.glob("*"))


def card(home: Home, resolved: Resolved) -> Any:
    """The model card's front matter and title, and its last word."""
    lines = (ran(home, resolved).folder / "README.md").read_text().splitlines()
    title = next(line for line in lines if line.startswith("# "))
    own = title == f"# {home.number}"  # the folder's
    return lines[: lines.index("---", 1)], "of the folder" if own else title, lines[-1]


def micro_batch(home: Home, resolved: Resolved) -> Any:
    """How many tokens a forward pass may hold, as the last checkpoint has it."""
    folder = sorted((ran(home, resolved).folder / "checkpoints").glob("step-*"))[-1]
    return json.loads((folder / "state.json").read_text())["progress"]["micro_tokens"]


def moments(home: Home, resolved: Resolved) -> Any:
    """The names of what the optimizer keeps."""
    from safetensors import safe_open

    folder = sorted((ran(home, resolved).folder / "checkpoints").glob("step-*"))[-1]
    with safe_open(folder / "trainer.safetensors", "pt") as file:
        return sorted(file.keys())


def reported(home: Home, resolved: Resolved) -> Any:
    """What a tracking service is told."""
    told: list[Any] = []

    class Spy(Reporter):
        name = "wandb"

        def __init__(self, run_name: str, folder: Path, earlier: str | None = None, project: str = "") -> None:
            told.append((run_name, project))

        def send(self, values: dict[str, float], step: int) -> None:
            told.append((sorted(values), step))

        def finish(self, whole: bool) -> None:
            told.append(whole)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REPORTERS, "wandb", Spy)
        ran(home, resolved)
    return told


def cramped(home: Home, resolved: Resolved) -> Any:
    """How a run begins where almost no memory is free."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "memory_of", lambda device, given=None: Memory("cpu", 3 * 10**8, 10**6, 2 * 10**8))
        return planned(home, resolved)
