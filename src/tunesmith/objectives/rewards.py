"""Rewards: functions of completions, called as TRL calls them.

    def reward(prompts, completions, completion_ids, **columns) -> list[float | None]

Every argument is a keyword and a list of one entry for each completion: `prompts`, `completions` (text, or lists of
messages where the prompt is one), `completion_ids`, and every column of the rows. None: not for this function to judge.
`trainer_state.global_step` counts steps, `log_metric(name, value)` adds to what is told of the step, and
`log_extra(name, values)` to the completions that are shown. A coroutine function is awaited. What a function does wrong
is said with its name and the row, and ends the run, saved as it is after the last whole step.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tunesmith.data.types import Origin
from tunesmith.errors import DataError, RecipeError
from tunesmith.score import SCORERS

Function = Callable[..., Any]


class TimedOut(DataError):
    """A reward took longer than it may."""


@dataclass(frozen=True)
class Reward:
    name: str
    function: Function
    weight: float

    @property
    def short(self) -> str:
        """Its name without the folder of its file."""
        path, found, function = self.name.rpartition(".py:")
        return f"{Path(path).name}{found}{function}" if found else self.name


@dataclass(frozen=True)
class Completion:
    """One answer under judgement. `text` has no end token; `row` holds the prompt's columns."""

    prompt: Any
    text: str
    token_ids: Sequence[int]
    row: Mapping[str, Any]
    origin: Origin

    @property
    def said(self) -> Any:
        """As a reward gets it: text, or a list of one message where the prompt is a list of them."""
        is_text = isinstance(self.prompt, str)
        return self.text if is_text else [{"role": "assistant", "content": self.text}]


def _lists(named: Mapping[str, Any]) -> dict[str, Any]:
    """The columns among what a reward is handed."""
    return {name: value for name, value in named.items() if isinstance(value, list)}


def text_of(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


# ---- what is built in ------------------------------------------------------------------------------------------------


def _scorer(name: str, gold: str) -> Function:
    scorer = SCORERS[name]

    def score(completions: Sequence[Any], **columns: Any) -> list[float]:
        columns = _lists(columns)
        if gold not in columns:
            raise KeyError(f"the rows have no column {gold!r} with the right answer (objective.gold)")
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [float(scorer(text_of(c), row[gold], row)) for c, row in zip(completions, rows, strict=True)]

    return score


def _format(pattern: str) -> Function:
    """1 where the whole completion has the form of a regular expression."""
    compiled = re.compile(pattern, re.DOTALL)
    return lambda completions, **_: [float(compiled.fullmatch(text_of(c).strip()) is not None) for c in completions]


def _length(target: str) -> Function:
    """-|tokens - N| / N."""
    wanted = int(target)
    return lambda completion_ids, **_: [-abs(len(ids) - wanted) / wanted for ids in completion_ids]


def repetition(completions: Sequence[Any], **_: Any) -> list[float]:
    """0 where no run of three words comes twice, down to -1 where all do."""
    made = []
    for completion in completions:
        words = text_of(completion).split()
        runs = Counter(zip(words, words[1:], words[2:], strict=False))
        total = sum(runs.values())
        made.append(len(runs) / total - 1 if total else 0.0)
    return made


def is_json(completions: Sequence[Any], **_: Any) -> list[float]:
    """1 where the completion is JSON."""

    def reads(text: str) -> float:
        try:
            json.loads(text)
        except ValueError:
            return 0.0
        return 1.0

    return [reads(text_of(completion)) for completion in completions]


def _json_schema(file: str) -> Function:
    """1 where the completion is JSON that a schema, in a file, allows."""
    try:
        import jsonschema
    except ImportError:
        raise RecipeError(
            "objective.rewards: json_schema needs a package that is not here", fix="pip install 'tunesmith[schema]'"
        ) from None
    try:
        schema = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
        validator = jsonschema.validators.validator_for(schema)
        validator.check_schema(schema)
    except (OSError, ValueError, jsonschema.SchemaError) as error:
        said = str(error).partition("\n")[0]
        raise RecipeError("objective.rewards: the JSON schema cannot be read", where=file, found=said) from None
    check = validator(schema)

    def allows(text: str) -> float:
        try:
            return float(check.is_valid(json.loads(text)))
        except ValueError:
            return 0.0

    return lambda completions, **_: [allows(text_of(completion)) for completion in completions]


PLAIN: dict[str, Function] = {"repetition": repetition, "json": is_json}
WITH_ARGUMENT: dict[str, Callable[[str], Function]] = {
    "format": _format,
    "length": _length,
    "json_schema": _json_schema,
}
"""Kinds of rewards that are given something behind a colon. Who has another kind to offer adds it: `model`, a trained
reward model, comes from where models are opened (reward_model.py)."""


# ---- functions written for others ------------------------------------------------------------------------------------


def _of_verl(function: Function, gold: str) -> Function:
    """compute_score(data_source, solution_str, ground_truth, extra_info) of one answer, a number or {"score": …}."""

    def score(completions: Sequence[Any], **columns: Any) -> list[Any]:
        made, columns = [], _lists(columns)
        for place, completion in enumerate(completions):
            row = {key: values[place] for key, values in columns.items()}
            found = function(
                data_source=row.get("data_source"),
                solution_str=text_of(completion),
                ground_truth=row.get(gold),
                extra_info=row.get("extra_info"),
            )
            made.append(found["score"] if isinstance(found, Mapping) else found)
        return made

    return score


def _of_openrlhf(function: Function, gold: str) -> Function:
    """reward_func(queries, prompts, labels), the queries being prompt and answer; values, or {"rewards": values}."""

    def score(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Any:
        asked = [prompt if isinstance(prompt, str) else text_of(prompt) for prompt in prompts]
        queries = [prompt + text_of(completion) for prompt, completion in zip(asked, completions, strict=True)]
        found = function(queries, asked, columns.get(gold, [None] * len(queries)))
        return found["rewards"] if isinstance(found, Mapping) else found

    return score


OTHERS: dict[str, Callable[[Function, str], Function]] = {"verl": _of_verl, "openrlhf": _of_openrlhf}


def load(names: Sequence[str], weights: Sequence[float] | None, gold: str) -> list[Reward]:
    """The rewards of a recipe; what cannot be found or called is an error before any weight is loaded."""
    chosen = [1.0] * len(names) if weights is None else list(weights)
    return [Reward(name, _function(name, gold), weight) for name, weight in zip(names, chosen, strict=True)]


def _function(name: str, gold: str) -> Function:
    kind, _, own = name.partition(":")
    if kind in OTHERS and ":" in own:
        return OTHERS[kind](_imported(own, any_columns=False), gold)
    head, colon, rest = name.rpartition(":") if ".py:" in name else name.partition(":")
    if not colon:
        if name in PLAIN:
            return PLAIN[name]
        if name in SCORERS:
            return _scorer(name, gold)
        raise _unknown(name, name)
    if head in WITH_ARGUMENT:
        try:
            return WITH_ARGUMENT[head](rest)
        except (ValueError, re.error) as error:
            raise RecipeError(f"objective.rewards: {name!r} cannot be read: {error}") from None
    if not head.endswith(".py") and "." not in head and importlib.util.find_spec(head) is None:
        raise _unknown(name, head)
    return _imported(name, any_columns=True)


def _unknown(name: str, word: str) -> RecipeError:
    known = [*SCORERS, *PLAIN, *(f"{kind}:…" for kind in WITH_ARGUMENT)]
    meant = difflib.get_close_matches(word, [one.removesuffix(":…") for one in known], n=1)
    return RecipeError(
        f"objective.rewards: there is no reward {name!r}",
        expected=", ".join(known) + ", file.py:function or module:function",
        notes={"did you mean": meant[0]} if meant else {},
    )


def _imported(name: str, *, any_columns: bool) -> Function:
    """The function of "file.py:function" or "module:function"."""
    head, _, rest = name.rpartition(":")
    module = _module(head, name)
    function = getattr(module, rest, None)
    if not callable(function):
        found = ", ".join(key for key, value in vars(module).items() if inspect.isfunction(value)) or "no function"
        raise RecipeError(f"objective.rewards: {head} has no function {rest!r}", found=found)
    if any_columns and not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
        raise RecipeError(
            f"objective.rewards: {name} does not take whatever columns the rows have",
            found=f"{rest}{inspect.signature(function)}",
            fix="end its parameters with **kwargs",
        )
    made: Function = function
    return made


def _module(head: str, name: str) -> Any:
    try:
        if not head.endswith(".py"):
            return importlib.import_module(head)
        path = Path(head)
        if not path.is_file():
            raise RecipeError(f"objective.rewards: there is no file {head}", where=name)
        called = f"tunesmith_reward_{path.stem}_{abs(hash(str(path.resolve()))):x}"
        spec = importlib.util.spec_from_file_location(called, path)
        if spec is None or spec.loader is None:
            raise RecipeError(f"objective.rewards: {head} is no Python file", where=name)
        module = importlib.util.module_from_spec(spec)
        sys.modules[called] = module
        if str(path.parent.resolve()) not in sys.path:
            sys.path.append(str(path.parent.resolve()))  # for files beside it
        spec.loader.exec_module(module)
        return module
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(
            f"objective.rewards: {head} cannot be imported", found=f"{type(error).__name__}: {error}"
        ) from error


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


def judge(
    rewards: Sequence[Reward], completions: Sequence[Completion], seconds: float, told: Told | None = None
) -> list[list[float]]:
    """For each reward its value for each completion; NaN where it does not apply. `told` gathers what they say."""
    return [_judged(reward, completions, seconds, told or Told()) for reward in rewards]


def total(values: Sequence[Sequence[float]], rewards: Sequence[Reward]) -> list[float]:
    """The weighted sum of what applies to each completion; NaN where nothing does."""
    made = []
    for each in zip(*values, strict=True):
        parts = [w.weight * value for w, value in zip(rewards, each, strict=True) if not math.isnan(value)]
        made.append(sum(parts) if parts else math.nan)
    return made


def _judged(reward: Reward, completions: Sequence[Completion], seconds: float, told: Told) -> list[float]:
    try:
        found = _called(reward, completions, seconds, told)
    except TimedOut:
        raise
    except DataError as error:
        raise error.at(_culprit(reward, completions, seconds) or "").noted("reward", reward.name) from error
    except Exception as error:
        raise DataError(
            f"the reward {reward.name} failed: {type(error).__name__}: {error}",
            where=_culprit(reward, completions, seconds),
            fix="mend the function; --resume goes on after the last whole step",
        ) from error
    plain = found.tolist() if hasattr(found, "tolist") else found
    values = list(plain) if isinstance(plain, list | tuple) else None
    if values is None or len(values) != len(completions):
        what = f"{len(values)} values" if values is not None else f"{type(found).__name__} {found!r:.60}"
        raise DataError(
            f"the reward {reward.name} must give one value for each completion",
            found=what,
            expected=f"a list of {len(completions)}",
        )
    made = []
    for value, completion in zip(values, completions, strict=True):
        if value is None:
            made.append(math.nan)
            continue
        if isinstance(value, str) or not _is_number(value) or not math.isfinite(float(value)):
            raise DataError(
                f"the reward {reward.name} gave no finite number",
                where=str(completion.origin),
                found=f"{value!r:.60} for {completion.text[:80]!r}",
                expected="a number, or None where it does not apply",
            )
        made.append(float(value))
    return made


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _called(reward: Reward, completions: Sequence[Completion], seconds: float, told: Told) -> Any:
    """What the function gives, within `seconds`."""
    columns = dict.fromkeys(key for completion in completions for key in completion.row)
    arguments: dict[str, Any] = {key: [completion.row.get(key) for completion in completions] for key in columns}
    arguments |= {
        "prompts": [completion.prompt for completion in completions],
        "completions": [completion.said for completion in completions],
        "completion_ids": [list(completion.token_ids) for completion in completions],
        **told.arguments(),
    }
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            made = reward.function(**arguments)
            outcome["value"] = asyncio.run(_awaited(made)) if inspect.isawaitable(made) else made
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=work, daemon=True, name=f"reward {reward.name}")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        rows = ", ".join(dict.fromkeys(str(completion.origin) for completion in completions[:3]))
        raise TimedOut(
            f"the reward {reward.name} did not answer within {seconds:g} s",
            where=f"{rows}, …" if len(completions) > 3 else rows,
            fix="make it faster, or raise objective.reward_seconds",
        )
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


async def _awaited(made: Any) -> Any:
    return await made


def _culprit(reward: Reward, completions: Sequence[Completion], seconds: float) -> str | None:
    """The row of the first completion that the function fails at when it is alone."""
    begun = time.monotonic()
    for completion in completions:
        if (left := seconds - (time.monotonic() - begun)) <= 0:
            break
        try:
            _called(reward, [completion], left, Told())
        except TimedOut:
            break
        except Exception:
            return str(completion.origin)
    return None


def source_of(rewards: Sequence[Reward]) -> str:
    """A digest of the code that the rewards stand in, where it can be read: another judge makes another run."""
    digest = hashlib.blake2b(digest_size=16)
    for reward in rewards:
        digest.update(f"{reward.name} {reward.weight!r}".encode())
        own = getattr(reward.function, "wraps", reward.function)
        with contextlib.suppress(TypeError, OSError):
            file = inspect.getsourcefile(own)
            if file is not None and "tunesmith" not in Path(file).parts:
                digest.update(Path(file).read_bytes())
    return digest.hexdigest()
