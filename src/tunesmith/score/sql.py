"""Execution accuracy of SQLite queries: two queries agree when they return the same rows from the same databases.

Predicted queries are foreign code. They run in memory, may only read, and are stopped after a time, a number of rows
and a size of value.
"""

from __future__ import annotations

import math
import re
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

Value = None | int | float | str | bytes
SqlRow = tuple[Value, ...]

MAX_SECONDS = 1.0
MAX_ROWS = 10_000
MAX_VALUE_BYTES = 1_000_000
MAX_PATTERN_BYTES = 1_000
READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
# printf pads to any width in one step that no time limit interrupts.
FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit", "printf", "format"}

FENCE = re.compile(r"```(?:\w+)?[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
QUERY_START = re.compile(r"\b(?:SELECT\b|WITH\s+(?:RECURSIVE\s+)?\w+(?:\s*\([^)]*\))?\s+AS\b)", re.IGNORECASE)
# The first end of a query in talk: a semicolon outside quotes, a blank line, or a closing fence.
QUERY_TEXT = re.compile(r"(?:'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|(?!\n[ \t]*\n|```)[^;])*", re.DOTALL)


class QueryFailed(Exception):
    """The query did not come to a result: what SQLite said, or which limit it met."""


@dataclass(frozen=True)
class Verdict:
    """`why` is empty when the answer is right."""

    correct: bool
    why: str = ""
    query: str = ""


def extract_sql(text: str) -> str:
    """The query in an answer that may hold talk around it; empty if there is none.

    A fenced block that holds a query wins; then the first SELECT or WITH up to a semicolon, a blank line or the end.
    """
    for block in FENCE.findall(text):
        found = _first_query(block)
        if found:
            return found
    return _first_query(text)


def _first_query(text: str) -> str:
    start = QUERY_START.search(text)
    if start is None:
        return ""
    body = QUERY_TEXT.match(text, start.start())
    return body.group().strip() if body else ""


def open_database(script: str) -> sqlite3.Connection:
    """A database in memory made by a trusted script, from then on only readable."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.executescript(script)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, MAX_PATTERN_BYTES)
    connection.set_authorizer(_authorize)
    return connection


def _authorize(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
    if action not in READING:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def run_query(
    connection: sqlite3.Connection, query: str, *, max_seconds: float = MAX_SECONDS, max_rows: int = MAX_ROWS
) -> list[SqlRow]:
    """The rows of one query on a connection of `open_database`. Raises QueryFailed, and nothing else."""
    deadline = time.monotonic() + max_seconds
    connection.set_progress_handler(lambda: int(time.monotonic() > deadline), 1000)
    try:
        rows: list[SqlRow] = connection.execute(query).fetchmany(max_rows + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, UnicodeError, MemoryError) as error:
        raise QueryFailed("took too long" if time.monotonic() > deadline else str(error)) from error
    finally:
        connection.set_progress_handler(None, 0)
    if len(rows) > max_rows:
        raise QueryFailed(f"more than {max_rows} rows")
    return rows


def execution_match(answer: str, gold: str, databases: Sequence[str], *, max_seconds: float = MAX_SECONDS) -> Verdict:
    """Whether the query in `answer` returns what `gold` returns, in every database (creating scripts).

    The order of rows counts only where `gold` orders them; the order of columns always, their names never.
    """
    query = extract_sql(answer)
    if not query:
        return Verdict(False, "no query in the answer")
    ordered = orders_rows(gold)
    for script in databases:
        connection = _cached_database(script, threading.get_ident())
        expected = run_query(connection, gold)
        try:
            found = run_query(connection, query, max_seconds=max_seconds)
        except QueryFailed as failure:
            return Verdict(False, str(failure), query)
        if not same_rows(found, expected, ordered=ordered):
            return Verdict(False, "other rows", query)
    return Verdict(True, query=query)


@lru_cache(maxsize=256)
def _cached_database(script: str, thread: int) -> sqlite3.Connection:
    """One connection per thread: a time limit hangs on the connection."""
    return open_database(script)


def orders_rows(query: str) -> bool:
    """Whether the outermost query has an ORDER BY: one outside all parentheses and quotes."""
    bare = re.sub(r"'(?:[^']|'')*'", "''", query)
    while (inner := re.sub(r"\([^()]*\)", " ", bare)) != bare:
        bare = inner
    return re.search(r"\bORDER\s+BY\b", bare, re.IGNORECASE) is not None


def same_rows(found: Sequence[SqlRow], expected: Sequence[SqlRow], *, ordered: bool) -> bool:
    """Equal as lists, or as multisets. Numbers agree within 1e-6 of their size, and 2 with 2.0."""
    if len(found) != len(expected):
        return False
    if ordered:
        return all(_same_row(a, b) for a, b in zip(found, expected, strict=True))
    if all(_same_row(a, b) for a, b in zip(sorted(found, key=_rank), sorted(expected, key=_rank), strict=True)):
        return True
    return _pair_off(found, expected)


def _pair_off(found: Sequence[SqlRow], expected: Sequence[SqlRow]) -> bool:
    """Match each row with an unused one: for floats so close that sorting put them the other way round."""
    if not any(isinstance(value, float) for row in expected for value in row):
        return False
    left = list(expected)
    for row in found:
        index = next((i for i, other in enumerate(left) if _same_row(row, other)), None)
        if index is None:
            return False
        del left[index]
    return True


def _same_row(a: SqlRow, b: SqlRow) -> bool:
    return len(a) == len(b) and all(_same_value(x, y) for x, y in zip(a, b, strict=True))


def _same_value(a: Value, b: Value) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b or math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
    return type(a) is type(b) and a == b


def _rank(row: SqlRow) -> tuple[tuple[int, float, str], ...]:
    return tuple(_rank_value(value) for value in row)


def _rank_value(value: Value) -> tuple[int, float, str]:
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, (int, float)):
        return (1, float(value), "")
    return (2, 0.0, value) if isinstance(value, str) else (3, 0.0, value.hex())
