"""Rows that are longer than `data.max_length`: left out, cut, cut into pieces, or an error; and pairs that are no
choice then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from tunesmith.data.check.counts import Counts
from tunesmith.data.masking.answering import cut
from tunesmith.data.problems import Problems
from tunesmith.data.settings import DataSettings
from tunesmith.data.types import Document, Example, Origin, Preference, Row
from tunesmith.errors import DataError

T = TypeVar("T", bound=Row)


def fit(
    rows: Sequence[Row],
    examples: Sequence[Example],
    settings: DataSettings,
    counts: Counts,
    advice: Mapping[str, str],
) -> list[Example]:
    """Examples of at most `max_length` tokens, each with something to learn."""
    counts.lengths.extend(map(len, examples))
    problems = Problems("rows are longer than data.max_length", stage=2)
    fitted: list[Example] = []
    for row, example in zip(rows, examples, strict=True):
        pieces = [example]
        if len(example) > settings.max_length:
            pieces = _shortened(row, example, settings, counts, problems, advice)
        learnable = [piece for piece in pieces if piece.num_learned]
        if pieces and not learnable:
            counts.add("unlearnable", example.origin)
        fitted += learnable
    problems.raise_if_any()
    return fitted


def _shortened(
    row: Row,
    example: Example,
    settings: DataSettings,
    counts: Counts,
    problems: Problems,
    advice: Mapping[str, str],
) -> list[Example]:
    limit = settings.max_length
    if settings.overlong == "error":
        problems.add(
            DataError(
                "the row is longer than data.max_length",
                where=str(example.origin),
                found=f"{len(example)} tokens",
                expected=f"at most {limit}",
                fix=f"{advice['overlong']}; or set data.overlong to drop or truncate",
            )
        )
        return []
    if settings.overlong == "truncate":
        counts.add("truncated", example.origin)
        return [_piece(example, 0, limit)]
    if settings.overlong == "split" and isinstance(row, Document):
        counts.add("split", example.origin)
        # Each piece begins with the last token of the one before, so that every token is learned once.
        return [_piece(example, start, start + limit) for start in range(0, len(example) - 1, limit - 1)]
    counts.add("overlong", example.origin)
    return []


def _piece(example: Example, start: int, end: int) -> Example:
    weights = example.loss_weights[start:end].copy()
    weights[:1] = 0.0
    answers = cut(example.answers, start, end)
    return replace(example, token_ids=example.token_ids[start:end], loss_weights=weights, answers=answers)


def measure(
    rows: Sequence[T], examples: Sequence[Example], settings: DataSettings, counts: Counts, tokens: Callable[[T], int]
) -> None:
    """Note how long each row was uncut, where `fit` is not asked: what reaches the limit is written anew."""
    limit, known = settings.max_length, {example.origin: len(example) for example in examples}
    for row in rows:
        length = known.get(row.origin, limit)
        counts.lengths.append(length if length < limit else tokens(row))


def whole_pairs(
    rows: Sequence[Row], uncut: Sequence[Example], examples: list[Example], counts: Counts
) -> list[Example]:
    """Without sides whose other side was left out, and without pairs that are no choice."""
    pairs: dict[Origin, list[Example]] = {row.origin: [] for row in rows if isinstance(row, Preference)}
    for example in examples:
        if example.origin in pairs:
            pairs[example.origin].append(example)
    alike = {origin: sides for origin, sides in pairs.items() if len(sides) == 2 and _same_tokens(*sides)}
    whole: dict[Origin, list[Example]] = {origin: [] for origin in alike}
    for example in uncut:
        if example.origin in whole:
            whole[example.origin].append(example)
    for origin, sides in alike.items():
        counts.add("identical" if _same_tokens(*whole[origin]) else "cut_alike", origin)
        sides.clear()
    return [example for example in examples if len(pairs.get(example.origin, "ok")) == 2]


def _same_tokens(one: Example, other: Example) -> bool:
    return np.array_equal(one.token_ids, other.token_ids)
