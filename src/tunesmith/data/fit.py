"""Rows that are longer than `data.max_length`: left out, cut, cut into pieces, or an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tunesmith.data.counts import Counts
from tunesmith.data.problems import Problems
from tunesmith.data.settings import DataSettings
from tunesmith.data.types import Document, Example, Row
from tunesmith.errors import DataError


def fit(
    rows: Sequence[Row],
    examples: Sequence[Example],
    settings: DataSettings,
    counts: Counts,
    advice: Mapping[str, str],
) -> list[Example]:
    """Examples of at most `max_length` tokens, each with something to learn."""
    problems = Problems("rows are longer than data.max_length")
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
    return replace(example, token_ids=example.token_ids[start:end], loss_weights=weights)
