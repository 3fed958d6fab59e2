"""Rows into the questions that an evaluation asks, each with its right answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tunesmith.data.formats import LEARNABLE
from tunesmith.data.mixture import part_rows, read_parts
from tunesmith.data.prepare import answered, is_empty
from tunesmith.data.problems import counted
from tunesmith.data.settings import DataSettings
from tunesmith.data.types import Conversation, Row
from tunesmith.errors import DataError
from tunesmith.evaluate import Item, item_of, items_of
from tunesmith.score.toolcall import parse_calls

LAST, ALL = "last", "all"
"""Which answers of a conversation are asked for."""


def questions(
    settings: DataSettings,
    seed: int,
    all_rows: bool,
    limit: int | None,
    gold: str | None,
    turns: str,
    say: Callable[[str], object],
    takes: tuple[type[Row], ...] = LEARNABLE,
) -> list[Item]:
    """One item per conversation: its turns up to the last answer, which is the gold one unless a column holds it; or
    one for each of its answers. Rows without an answer are left out, and that is said.

    `takes`: what the recipe learns from; of a pair, the chosen answer is the right one.
    """
    parts = read_parts(settings)
    if not all_rows:
        parts = part_rows(parts, settings, seed=seed).held_out
    raw = [row for part in parts for row in part.raw]
    rows = [answered(row) for part in parts if part.raw for row in part.converted(takes, LEARNABLE).rows]
    by_row: list[list[Item]] = []
    for row, (origin, values) in zip(rows, raw, strict=True):
        if gold is not None and gold not in values:
            what, fix = f"no column {gold!r} with the right answer", "name one that is there, or mend the row"
            raise DataError(what, where=str(origin), found=", ".join(values), fix=fix)
        if not isinstance(row, Conversation) or not row.messages:
            continue
        if turns == ALL:
            by_row.append(items_of(row, dict(values), len(by_row) + 1))
        elif gold is not None or _ends_in_answer(row):
            by_row.append([item_of(row, dict(values), None if gold is None else values[gold])])
    by_row = [items for items in by_row if items]
    if not by_row:
        fix = "name the column of the right answers: --gold, or test.gold in a study"
        raise DataError("no row has an answer to compare with", where=settings.named, fix=fix)
    if left_out := len(rows) - len(by_row):
        say(f"{counted(left_out, 'row')} without an answer, left out")
    return [item for items in by_row[:limit] for item in items]


def _ends_in_answer(row: Conversation) -> bool:
    return row.messages[-1].role == "assistant" and not is_empty(row)


def calls_apart(items: list[Item]) -> list[Item]:
    """Where some answers are calls and others talk: told apart, as any talk at all is right where no call is wanted."""
    wanted = [bool(parse_calls(item.gold) if isinstance(item.gold, str) else item.gold) for item in items]
    if all(wanted) or not any(wanted):
        return items
    parts = {True: "a call is wanted", False: "no call is wanted"}
    return [replace(item, part=parts[call]) for item, call in zip(items, wanted, strict=True)]


def refuse_unscorable(items: Sequence[Item], scorers: Sequence[str], where: str) -> None:
    """What a scorer reads of a row stands there before anything is answered."""
    if "sql" in scorers and any("databases" not in item.row for item in items):
        raise DataError(
            "to run queries, every row needs the column databases: scripts that make and fill one each",
            where=where,
            fix="add it to the rows, or take another score (exact)",
        )
