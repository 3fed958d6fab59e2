"""Rows that the rewards of a recipe could not judge: refused before any weight is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.data.problems import listed
from tunesmith.data.types import Asked
from tunesmith.errors import DataError
from tunesmith.objectives.plugins import rows_of
from tunesmith.objectives.rewards import ARGUMENTS
from tunesmith.objectives.rewards_built_in import OTHERS, WITH_ARGUMENT
from tunesmith.score import SCORERS


def refuse_rows(gold: str, names: Sequence[str], asked: Sequence[Asked]) -> None:
    """Refuse rows without the right answers that rewards compare with, and with columns that could not be handed on.

    `names`: the rewards; `gold`: the column of right answers.
    """
    others = [name for name in names if _is_of_others(name)]
    compared = [name for name in names if name in SCORERS or name in others]
    theirs = [name for name in names if ":" in name and name not in others and _kind(name) not in WITH_ARGUMENT]
    if compared and asked:
        _refuse_without(gold, compared, others, asked)
    for one in asked:
        handed = one.prompt.columns if theirs else [gold] if compared else []
        if clashing := [key for key in ARGUMENTS if key in handed]:
            (first, *_), to = clashing, theirs or compared
            raise DataError(
                f"a column has the name of an argument of rewards, and could not be handed to {listed(to)}",
                where=str(one.origin),
                found=listed(clashing),
                fix=f"give it another name: data.columns={{row_{first}: {first}}}"
                + ("" if theirs else f", objective.gold=row_{first}"),
            )


def _refuse_without(gold: str, compared: Sequence[str], others: Sequence[str], asked: Sequence[Asked]) -> None:
    """A scorer judges by itself a row without a right answer, which may mean that there is none; the functions of
    `others` were written for rows that have one."""
    if not any(gold in one.prompt.columns for one in asked):
        there = dict.fromkeys(key for one in asked for key in one.prompt.columns)
        raise DataError(
            f"no row has the column {gold!r} with the right answer, which {_of(compared)} asks for",
            where=str(asked[0].origin),
            found=listed(there) or "no column beside the prompt",
            fix="name the column in objective.gold",
        )
    without = [str(one.origin) for one in asked if one.prompt.columns.get(gold) is None]
    if others and without:
        raise DataError(
            f"nothing stands in the column {gold!r} with the right answer, which {_of(others)} asks for",
            where=rows_of(without),
            fix="give each row its right answer, or name another column in objective.gold",
        )


def _of(names: Sequence[str]) -> str:
    return f"objective.rewards {listed(names)}"


def _kind(name: str) -> str:
    return name.partition(":")[0]


def _is_of_others(name: str) -> bool:
    """It is written as another tool calls it."""
    kind, _, own = name.partition(":")
    return kind in OTHERS and ":" in own
