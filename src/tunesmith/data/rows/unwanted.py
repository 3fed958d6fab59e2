"""Answers that their own row keeps from being learned: those it calls bad, and those it keeps for testing.

Rows with such columns are read as conversations too, where the objective learns those. The bad answers would then be
taught like the good ones, with nothing to see of it but a column that is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.problems import shown
from tunesmith.data.rows.messages import Unreadable

LABELS = ("label", "kto_tag")
"""Columns that say whether an answer is wanted."""
TEST = "TEST"
_WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def judgement(value: Any) -> bool | None:
    """Whether a label says that an answer is wanted, as JSON or a table writes it; None: it says neither."""
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower())
    return bool(value) if value in (0, 1, False, True) else None


def refuse_unwanted(row: Mapping[str, Any]) -> None:
    """Raise `Unreadable` where the row says that its answer is not to be learned."""
    bad = next((name for name in LABELS if judgement(row.get(name)) is False), None)
    if bad is not None:
        raise Unreadable(
            f"the column {bad!r} says that this answer is not wanted, and it would be learned as if it were",
            found=f"{bad}: {shown(row[bad], 40)}",
            fix="set objective.kind=preference objective.loss=kto, which learns from both kinds; or leave such rows "
            f"out; where the column means something else, have it not read: data.columns={{{bad}: null}}",
        )
    if row.get("split") == TEST:
        raise Unreadable(
            "the row's column 'split' keeps it from training",
            found=f"split: {TEST}",
            fix="put such rows into a file of their own, and name it in data.held_out; there, or where the column "
            "means something else, have it not read: data.columns={split: null}",
        )
