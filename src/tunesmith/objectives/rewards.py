"""Rewards: functions of completions, called as TRL calls them.

    def reward(prompts, completions, completion_ids, **columns) -> list[float | None]

Every argument is a keyword and a list of one entry for each completion: `prompts`, `completions` (text, or lists of
messages where the prompt is one), `completion_ids`, and every column of the rows. None: not for this function to judge.
`trainer_state.global_step` is the number of updates made so far, `log_metric(name, value)` adds to what is told of the
step, and `log_extra(name, values)` to the completions that are shown. A coroutine function is awaited, several of them
at the same time; all calls of one function run in one thread with one loop, which is not the main one: so a function
that takes too long can be left. What a function does wrong ends the run, saved as it is after the last whole step, and
is said with the function's name and the row. A call that raises is made again for one completion at a time: the first
that fails alone in the same words has the row; where none does, the rows of the call are named.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tunesmith.data.problems import listed
from tunesmith.data.types import Origin, Prompt
from tunesmith.errors import DataError, RecipeError
from tunesmith.objectives.plugins import (
    Call,
    TimedOut,
    Worker,
    ended_after,
    imported,
    is_number,
    rows_of,
    short_name,
)
from tunesmith.objectives.rewards_built_in import OTHERS, PLAIN, WITH_ARGUMENT, Form, Function, scorer
from tunesmith.score import SCORERS

_GO_ON = "; --resume goes on after the last whole step"
_IN_A_THREAD = (
    "calls run in a thread of their own, so that objective.reward_seconds can limit them: open connections in the "
    "function, and leave out what sets alarms (of math_verify, parsing_timeout=None and timeout_seconds=None)" + _GO_ON
)
_OURS = Path(__file__).resolve().parents[1]


@dataclass
class Reward:
    name: str
    function: Function
    weight: float
    wraps: Function | None = None
    """The user's own function, where `function` only gives it another shape."""
    _worker: Worker | None = field(default=None, init=False, repr=False)

    @property
    def short(self) -> str:
        """Its name without the folder of its file."""
        return short_name(self.name)

    @property
    def own(self) -> Function:
        """The code that judges."""
        return self.function if self.wraps is None else self.wraps

    @property
    def worker(self) -> Worker:
        """The thread and the loop that all its calls run in."""
        if self._worker is None:
            self._worker = Worker(f"the reward {self.name}")
        return self._worker

    def answer(self, call: Call, seconds: float) -> Any:
        """What came of a call of its worker's; one that took longer than `seconds` is left, with the worker."""
        try:
            return call.answer(seconds)
        except TimedOut:
            self.close()
            raise

    def close(self) -> None:
        """The thread ends; another call begins another one."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None


@dataclass(frozen=True)
class Judge:
    """A reward that is a model: it is handed whole prompts as `asked`; `ready` loads it before anybody waits for it;
    `digest` says which one it is."""

    function: Function
    ready: Callable[[], object]
    digest: str

    def __call__(self, /, **arguments: Any) -> Any:
        return self.function(**arguments)


@dataclass(frozen=True)
class Completion:
    """One answer under judgement. `text` has no end token; `row` holds the prompt's columns."""

    prompt: Any
    text: str
    token_ids: Sequence[int]
    row: Mapping[str, Any]
    origin: Origin
    asked: Prompt | None = None
    """The prompt whole, with its system turn and tools."""

    @property
    def said(self) -> Any:
        """As a reward gets it: text, or a list of one message where the prompt is a list of them."""
        is_text = isinstance(self.prompt, str)
        return self.text if is_text else [{"role": "assistant", "content": self.text}]


def load(names: Sequence[str], weights: Sequence[float] | None, gold: str) -> list[Reward]:
    """The rewards of a recipe; what cannot be found or called is an error before any weight is loaded."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise RecipeError(f"objective.rewards names {listed(twice)} twice", fix="give it once, with its weight")
    chosen = [1.0] * len(names) if weights is None else list(weights)
    return [_made(name, weight, gold) for name, weight in zip(names, chosen, strict=True)]


def _made(name: str, weight: float, gold: str) -> Reward:
    kind, _, own = name.partition(":")
    if kind in OTHERS and ":" in own:
        function = _reward(own, any_columns=False)
        return Reward(name, OTHERS[kind](function, gold), weight, function)
    return Reward(name, _function(name, gold), weight)


def _function(name: str, gold: str) -> Function:
    head, colon, rest = name.rpartition(":") if ".py:" in name else name.partition(":")
    if not colon:
        if name in PLAIN:
            return PLAIN[name]
        if name in SCORERS:
            return scorer(name, gold)
        raise _unknown(name, name)
    if head in WITH_ARGUMENT:
        try:
            return WITH_ARGUMENT[head](rest)
        except ValueError as error:
            what = f"objective.rewards: {name!r} cannot be read: {error}"
            raise RecipeError(what, fix=f"mend what stands behind {head}: (docs/policy.md has examples)") from None
    if not head.endswith(".py") and "." not in head and importlib.util.find_spec(head) is None:
        raise _unknown(name, head)
    return _reward(name, any_columns=True)


def _unknown(name: str, word: str) -> RecipeError:
    known = [*SCORERS, *PLAIN, *(f"{kind}:…" for kind in WITH_ARGUMENT)]
    meant = difflib.get_close_matches(word, [one.removesuffix(":…") for one in known], n=1)
    return RecipeError(
        f"objective.rewards: there is no reward {name!r}",
        expected=", ".join(known) + ", file.py:function or module:function",
        notes={"did you mean": meant[0]} if meant else {},
    )


def _reward(name: str, *, any_columns: bool) -> Function:
    """The function of "file.py:function" or "module:function"."""
    function = imported(name, "objective.rewards", "function")
    if any_columns and not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
        raise RecipeError(
            f"objective.rewards: {name} does not take whatever columns the rows have",
            found=f"{name.rpartition(':')[2]}{inspect.signature(function)}",
            fix="end its parameters with **kwargs",
        )
    return function


# ---- calling them ----------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What rewards say beside their values."""

    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        return {
            "trainer_state": SimpleNamespace(global_step=self.step),
            "log_metric": lambda name, value: self.metrics.update({str(name): float(value)}),
            "log_extra": lambda name, values: self.extra.update({str(name): list(values)}),
        }


ARGUMENTS = ("prompts", "completions", "completion_ids", *Told().arguments())
"""What a reward is handed beside the columns."""


def judge(
    rewards: Sequence[Reward], completions: Sequence[Completion], seconds: float, told: Told | None = None
) -> list[list[float]]:
    """For each reward its value for each completion; NaN where it does not apply. `told` gathers what they say.

    Functions are asked one after another; behind them all coroutine functions at the same time, `seconds` for each.
    """
    told = Told() if told is None else told
    own = [Told(told.step) for _ in rewards]
    values: list[list[float]] = [[] for _ in rewards]
    for places in _turns(rewards):
        turn = [rewards[place] for place in places]
        calls = _asked(turn, completions, seconds, [own[place] for place in places])
        for place, call in zip(places, calls, strict=True):
            values[place] = _judged(rewards[place], call, completions, seconds, told.step)
    for said in own:  # in the order of the rewards, whichever spoke first
        told.metrics |= said.metrics
        told.extra |= said.extra
    return values


def _turns(rewards: Sequence[Reward]) -> list[list[int]]:
    """Places of the rewards that are asked at the same time, in the order of asking."""
    together = [place for place, reward in enumerate(rewards) if inspect.iscoroutinefunction(reward.own)]
    apart = [[place] for place in range(len(rewards)) if place not in together]
    return [*apart, together] if together else apart


def total(values: Sequence[Sequence[float]], rewards: Sequence[Reward]) -> list[float]:
    """The weighted sum of what applies to each completion; NaN where nothing does."""
    made = []
    for each in zip(*values, strict=True):
        parts = [w.weight * value for w, value in zip(rewards, each, strict=True) if not math.isnan(value)]
        made.append(sum(parts) if parts else math.nan)
    return made


def means_of(rewards: Sequence[Reward], values: Sequence[Sequence[float]]) -> dict[str, float]:
    """By `rewards/NAME` the mean of what applied; a file's folder is part of the name where two are called alike."""
    shorts = Counter(reward.short for reward in rewards)
    means = {}
    for reward, own in zip(rewards, values, strict=True):
        known = [value for value in own if not math.isnan(value)]
        if known:
            means[f"rewards/{reward.short if shorts[reward.short] == 1 else reward.name}"] = sum(known) / len(known)
    return means


def none_applied(rewards: Sequence[Reward], completions: Sequence[Completion], times: int) -> DataError:
    """The error that ends a run whose rewards have all given None `times` in a row, for `completions` too."""
    return DataError(
        f"no reward applied to any completion, {times} times in a row: there is nothing to learn from",
        where=str(completions[0].origin),
        found=", ".join(f"{reward.name} gave None" for reward in rewards),
        fix="give numbers, or look at which columns the rewards ask for",
    )


def _judged(reward: Reward, call: Call, completions: Sequence[Completion], seconds: float, step: int) -> list[float]:
    """The values in what a reward answered, or the error that says what it did wrong."""
    try:
        found = reward.answer(call, seconds)
    except TimedOut:
        raise
    except Exception as error:
        said = type(error), str(error)
        where = _fault(reward, completions, seconds, step, lambda _, own: (type(own), str(own)) == said)
        if isinstance(error, DataError):
            raise error.at(where).noted("reward", reward.name) from error
        raise DataError(
            f"the reward {reward.name} failed: {type(error).__name__}: {error}",
            where=where,
            fix=_IN_A_THREAD if "thread" in str(error) else "mend the function" + _GO_ON,
        ) from error
    values = _listed(found)
    if values is None or len(values) != len(completions):

        def alike(alone: Any, error: Exception | None) -> bool:
            own = _listed(alone)
            return error is None and (own is None if values is None else own is not None and len(own) != 1)

        raise DataError(
            f"the reward {reward.name} must give one value for each completion",
            where=_fault(reward, completions, seconds, step, alike),
            found=f"{len(values)} values" if values is not None else f"{type(found).__name__} {found!r:.60}",
            expected=f"a list of {len(completions)}",
            fix="give None for a completion that it does not apply to" + _GO_ON,
        )
    made = []
    for value, completion in zip(values, completions, strict=True):
        if value is None:
            made.append(math.nan)
            continue
        if isinstance(value, str) or not is_number(value) or not math.isfinite(float(value)):
            raise DataError(
                f"the reward {reward.name} gave no finite number",
                where=str(completion.origin),
                found=f"{value!r:.60} for {completion.text[:80]!r}",
                expected="a number, or None where it does not apply",
            )
        made.append(float(value))
    return made


def _listed(found: Any) -> list[Any] | None:
    """What a reward gave, as a list; None where it is none."""
    plain = found.tolist() if hasattr(found, "tolist") else found
    return list(plain) if isinstance(plain, list | tuple) else None


def _asked(
    rewards: Sequence[Reward], completions: Sequence[Completion], seconds: float, told: Sequence[Told]
) -> list[Call]:
    """What each reward was asked of the completions, all at the same time, once they have answered or `seconds` have
    passed. `told`: by reward, what gathers what it says."""
    rows = [str(completion.origin) for completion in completions]
    with ended_after(seconds):
        calls = [
            reward.worker.begin(partial(reward.function, **_arguments(reward, completions, seconds, own)), rows)
            for reward, own in zip(rewards, told, strict=True)
        ]
        wait([call.future for call in calls], seconds)
    return calls


def _arguments(reward: Reward, completions: Sequence[Completion], seconds: float, told: Told) -> dict[str, Any]:
    columns = dict.fromkeys(key for completion in completions for key in completion.row)
    arguments: dict[str, Any] = {key: [completion.row.get(key) for completion in completions] for key in columns}
    arguments |= {
        "prompts": [completion.prompt for completion in completions],
        "completions": [completion.said for completion in completions],
        "completion_ids": [list(completion.token_ids) for completion in completions],
        **told.arguments(),
    }
    if isinstance(reward.function, Judge):
        arguments["asked"] = [completion.asked for completion in completions]
    if isinstance(reward.function, Form):
        arguments["seconds"] = seconds
    return arguments


def _fault(
    reward: Reward,
    completions: Sequence[Completion],
    seconds: float,
    step: int,
    is_it: Callable[[Any, Exception | None], bool],
) -> str:
    """Where a call went wrong: the row of the first completion with which alone it goes wrong alike, else the rows of
    the call. `is_it` says so of what the function gave alone, and of what it raised."""
    rows = [str(completion.origin) for completion in completions]
    end = time.monotonic() + seconds
    for row, completion in zip(rows, completions, strict=True):
        left = end - time.monotonic()
        if left <= 0 or len(set(rows)) == 1:
            break
        (call,) = _asked([reward], [completion], left, [Told(step)])
        found, error = None, None
        try:
            found = reward.answer(call, left)
        except TimedOut:
            break
        except Exception as raised:
            error = raised
        if is_it(found, error):
            return row
    return rows_of(rows)


def source_of(rewards: Sequence[Reward], others: Sequence[Any] = ()) -> str:
    """A digest of the code that the rewards (and `others`) stand in, where it can be read: another judge makes another
    run."""
    digest = hashlib.blake2b(digest_size=16)
    for reward in rewards:
        digest.update(f"{reward.name} {reward.weight!r}".encode())
        if isinstance(reward.function, Judge):
            digest.update(reward.function.digest.encode())
    for function in (*(reward.own for reward in rewards), *others):
        with contextlib.suppress(TypeError, OSError):
            file = inspect.getsourcefile(function)
            if file is not None and _OURS not in Path(file).resolve().parents:
                digest.update(Path(file).read_bytes())
    return digest.hexdigest()
