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

from tunesmith.errors import DataError

Value = None | int | float | str | bytes
SqlRow = tuple[Value, ...]

MAX_SECONDS = 1.0
GOLD_SECONDS = 10.0
MAX_ROWS = 10_000
MAX_VALUE_BYTES = 1_000_000
MAX_RESULT_BYTES = 50_000_000
MAX_PATTERN_BYTES = 1_000
READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
# printf pads to any width in one step that no time limit interrupts.
FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit", "printf", "format"}

FENCE = re.compile(r"```(?:\w+)?[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
# Names and texts in quotes, and comments: nothing in them ends or orders a query.
QUOTED = r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/"""
NAME = r"""(?:\w+|"[^"]+"|`[^`]+`|\[[^\]]+\])"""
QUERY_START = re.compile(rf"\b(?:SELECT\b|WITH\s+(?:RECURSIVE\s+)?{NAME}(?:\s*\([^)]*\))?\s+AS\b)", re.IGNORECASE)
# The first end of a query in talk: a semicolon outside quotes, a blank line, or a closing fence.
QUERY_IN_TALK = re.compile(rf"(?:{QUOTED}|(?!\n[ \t]*\n|```)[^;])*", re.DOTALL)
QUERY_IN_FENCE = re.compile(rf"(?:{QUOTED}|[^;])*", re.DOTALL)
GOES_ON = re.compile(r"\b(?:UNION|ALL|EXCEPT|INTERSECT)\s*$", re.IGNORECASE)


class QueryFailed(Exception):
    """The query did not come to a result: what SQLite said, or which limit it met."""


class GoldFailed(QueryFailed):
    """The query that is right by definition did not come to a result."""


@dataclass(frozen=True)
class Verdict:
    """`why` is empty when the answer is right."""

    correct: bool
    why: str = ""
    query: str = ""


def extract_sql(text: str) -> str:
    """The query in an answer that may hold talk around it; empty if there is none.

    What stands behind a thought comes before what stands in it; a fenced block that holds a query wins; then the first
    SELECT or WITH up to a semicolon, a blank line or the end.
    """
    behind = text.rpartition("</think>")[2]
    for part in (behind, text) if behind != text else (text,):
        for block in FENCE.findall(part):
            if found := _first_query(block, QUERY_IN_FENCE):
                return found
        if found := _first_query(part, QUERY_IN_TALK):
            return found
    return ""


def _first_query(text: str, whole: re.Pattern[str]) -> str:
    start = _start(text)
    body = None if start is None else whole.match(text, start)
    return body.group().strip() if body else ""


def _start(text: str) -> int | None:
    """Where the first query begins. "I will select the names: SELECT …": a verb in a sentence begins none, where a
    capital or a line of its own does, neither inside it nor joined to it."""
    starts = list(QUERY_START.finditer(text))
    for found in starts:
        before = text[starts[0].start() : found.start()]
        is_plain = text[found.start()].isupper() or not text[: found.start()].rpartition("\n")[2].strip()
        if is_plain and before.count("(") <= before.count(")") and not GOES_ON.search(before):
            return found.start()
    return starts[0].start() if starts else None


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
    rows: list[SqlRow] = []
    size = 0
    try:
        for row in connection.execute(query):
            rows.append(row)
            size += sum(len(value) for value in row if isinstance(value, str | bytes))
            if len(rows) > max_rows:
                raise QueryFailed(f"more than {max_rows} rows")
            if size > MAX_RESULT_BYTES:
                raise QueryFailed(f"more than {MAX_RESULT_BYTES // 1_000_000} MB of rows")
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, UnicodeError, MemoryError) as error:
        raise QueryFailed("took too long" if time.monotonic() > deadline else str(error)) from error
    finally:
        connection.set_progress_handler(None, 0)
    return rows


def execution_match(answer: str, gold: str, databases: Sequence[str], *, max_seconds: float = MAX_SECONDS) -> Verdict:
    """Whether the query in `answer` returns what `gold` returns, in every database (creating scripts).

    The order of rows counts only where `gold` orders them; the order of columns always, their names never.
    """
    query, ordered = extract_sql(answer), orders_rows(gold)
    for script in databases:
        connection = _cached_database(script, threading.get_ident())
        try:
            expected = run_query(connection, gold, max_seconds=GOLD_SECONDS)
        except QueryFailed as failure:
            raise GoldFailed(str(failure)) from failure
        if not query:
            return Verdict(False, "no query in the answer")
        try:
            found = run_query(connection, query, max_seconds=max_seconds)
        except QueryFailed as failure:
            return Verdict(False, str(failure), query)
        if not same_rows(found, expected, ordered=ordered):
            return Verdict(False, "other rows", query)
    return Verdict(True, query=query)


def execution_score(answer: str, gold: object, databases: object) -> float:
    """1 if the answer's query returns what `gold` returns. What cannot be scored is refused, whatever the answer."""
    if not isinstance(gold, str) or not gold.strip():
        found = f"{type(gold).__name__} {str(gold)[:80]}"
        raise DataError("the right answer is no query", found=found, expected="one query of SQL, as text")
    if not isinstance(databases, list | tuple) or not databases or not all(isinstance(one, str) for one in databases):
        raise DataError(
            "the row's databases are no list of scripts that make and fill one each",
            found=f"{type(databases).__name__} {str(databases)[:80]}",
            expected='["CREATE TABLE …; INSERT …;", …]',
        )
    try:
        return float(execution_match(answer, gold, databases).correct)
    except GoldFailed as failure:
        what, fix = f"the right query does not run: {failure}", "mend it, or the row's databases"
        raise DataError(what, found=gold[:200], fix=fix) from failure
    except sqlite3.Error as error:
        what, fix = f"a database's script does not run: {error}", "mend the script: SQLite runs it"
        raise DataError(what, found=str(databases)[:200], fix=fix) from error


@lru_cache(maxsize=256)
def _cached_database(script: str, thread: int) -> sqlite3.Connection:
    """One connection per thread: a time limit hangs on the connection."""
    return open_database(script)


def orders_rows(query: str) -> bool:
    """Whether the outermost query has an ORDER BY: one outside all parentheses and quotes."""
    bare = re.sub(QUOTED, "''", query, flags=re.DOTALL)
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
