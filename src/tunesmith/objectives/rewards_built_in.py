"""Rewards that need no code of their own, and shapes of others' that are taken as they are."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import time
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from tunesmith.errors import RecipeError
from tunesmith.objectives.plugins import OutOfTime
from tunesmith.score import SCORERS

Function = Callable[..., Any]


def lists_of(named: Mapping[str, Any]) -> dict[str, Any]:
    """The columns among what a reward is handed."""
    return {name: value for name, value in named.items() if isinstance(value, list)}


def text_of(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


# ---- what is built in ------------------------------------------------------------------------------------------------


def scorer(name: str, gold: str) -> Function:
    chosen = SCORERS[name]

    def score(completions: Sequence[Any], **columns: Any) -> list[float]:
        columns = lists_of(columns)
        if gold not in columns:
            raise KeyError(f"the rows have no column {gold!r} with the right answer (objective.gold)")
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [float(chosen(text_of(c), row[gold], row)) for c, row in zip(completions, rows, strict=True)]

    return score


@dataclass(frozen=True)
class Form:
    """1 where the whole completion has the form of a regular expression. All of them together may take `seconds`, then
    it ends by itself: `regex` counts the time, which `re` does not, and lets other threads run meanwhile."""

    pattern: regex.Pattern[str]

    def __call__(self, /, completions: Sequence[Any], seconds: float = 60.0, **_: Any) -> list[float]:
        end, fits = time.monotonic() + seconds, []
        for completion in completions:
            left = max(end - time.monotonic(), 1e-3)
            try:
                found = self.pattern.fullmatch(text_of(completion).strip(), timeout=left)
            except TimeoutError:
                raise OutOfTime from None
            fits.append(float(found is not None))
        return fits


_NO_COUNT = regex.compile(r"(\\N\{[^}]*\}|\\.)|\{(?!(?:\d+(?:,\d*)?|,\d*)\})", regex.DOTALL)
"""An escape, or a brace that counts nothing: Python reads it as itself, `regex` as leave to match nearly."""


def _format(pattern: str) -> Form:
    """The form that Python's `re` reads; one that it does not, or warns of, is an error, whatever `regex` would make of
    it."""
    plain = _NO_COUNT.sub(lambda found: found[1] or r"\{", pattern)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # [[:alpha:]]: another set in each of the two
            re.compile(pattern, re.DOTALL)
        return Form(regex.compile(plain, regex.DOTALL | regex.VERSION0))
    except (re.error, FutureWarning, regex.error) as error:
        raise ValueError(str(error)) from None


def _length(target: str) -> Function:
    """-|tokens - N| / N."""
    wanted = int(target)
    if wanted < 1:
        raise ValueError("a length is a whole number from 1 on")
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
        except (ValueError, RecursionError):  # nested too deeply to be read
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
        what, fix = "objective.rewards: the JSON schema cannot be read", "give a file that holds a JSON schema"
        raise RecipeError(what, where=file, found=said, fix=fix) from None
    check = validator(schema)

    def allows(text: str) -> float:
        try:
            return float(check.is_valid(json.loads(text)))
        except (ValueError, RecursionError):
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
    """compute_score(data_source, solution_str, ground_truth, extra_info) of one answer, a number or {"score": …}; of a
    coroutine function, all answers at the same time."""

    def score(completions: Sequence[Any], **columns: Any) -> Any:
        made, columns = [], lists_of(columns)
        for place, completion in enumerate(completions):
            row = {key: values[place] for key, values in columns.items()}
            found = function(
                data_source=row.get("data_source"),
                solution_str=text_of(completion),
                ground_truth=row.get(gold),
                extra_info=row.get("extra_info"),
            )
            made.append(found)
        return _gathered(made) if any(map(inspect.isawaitable, made)) else [_within(one, "score") for one in made]

    async def _gathered(made: Sequence[Any]) -> list[Any]:
        found = await asyncio.gather(*map(_awaited, made), return_exceptions=True)
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return [_within(one, "score") for one in found]

    return score


def _of_openrlhf(function: Function, gold: str) -> Function:
    """reward_func(queries, prompts, labels), the queries being prompt and answer; values, or {"rewards": values}; a
    coroutine function too."""

    def score(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Any:
        asked = [prompt if isinstance(prompt, str) else text_of(prompt) for prompt in prompts]
        queries = [prompt + text_of(completion) for prompt, completion in zip(asked, completions, strict=True)]
        found = function(queries, asked, columns.get(gold, [None] * len(queries)))
        return _later(found) if inspect.isawaitable(found) else _within(found, "rewards")

    async def _later(found: Awaitable[Any]) -> Any:
        return _within(await found, "rewards")

    return score


def _within(found: Any, key: str) -> Any:
    return found[key] if isinstance(found, Mapping) else found


async def _awaited(made: Any) -> Any:
    return await made if inspect.isawaitable(made) else made


OTHERS: dict[str, Callable[[Function, str], Function]] = {"verl": _of_verl, "openrlhf": _of_openrlhf}
