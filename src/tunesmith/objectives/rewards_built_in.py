"""Rewards that need no code of their own, and shapes of others' that are taken as they are."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError
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


def _format(pattern: str) -> Function:
    """1 where the whole completion has the form of a regular expression."""
    compiled = re.compile(pattern, re.DOTALL)
    return lambda completions, **_: [float(compiled.fullmatch(text_of(c).strip()) is not None) for c in completions]


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
        made, columns = [], lists_of(columns)
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
