"""Scorers by name: pure functions of (prediction, gold, row) -> score in [0, 1]; rewards use them too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tunesmith.score import sql, text, toolcall

Scorer = Callable[[str, Any, Mapping[str, Any]], float]


def _refusals(row: Mapping[str, Any]) -> tuple[str, ...]:
    own = row.get("refusal")
    return (*text.REFUSALS, own) if isinstance(own, str) else text.REFUSALS


SCORERS: dict[str, Scorer] = {
    "exact": lambda prediction, gold, row: text.exact_match(prediction, gold, _refusals(row)),
    "f1": lambda prediction, gold, row: text.f1(prediction, gold, _refusals(row)),
    "contains": lambda prediction, gold, row: text.contains(prediction, gold),
    "number": lambda prediction, gold, row: text.number(prediction, gold),
    "label": lambda prediction, gold, row: text.label(prediction, gold, row.get("labels") or ()),
    "sql": lambda prediction, gold, row: sql.execution_score(prediction, gold, row.get("databases")),
    "tool_call": lambda prediction, gold, row: toolcall.tool_call(prediction, gold, row.get("tools") or ()),
}
"""What a row may bring: `refusal` (a further text that means no answer), `labels`, `tools`; for sql `databases`, the
scripts that fill them. A gold answer with which no answer could be compared is a DataError, whatever the prediction: an
empty one tries a row."""
