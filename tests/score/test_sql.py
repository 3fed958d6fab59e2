"""Execution accuracy: equal meaning agrees, other meaning does not, and foreign queries can do no harm."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError
from tunesmith.score import SCORERS
from tunesmith.score.sql import (
    QueryFailed,
    execution_match,
    extract_sql,
    open_database,
    orders_rows,
    run_query,
    same_rows,
)

FIRST = """
CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT, price REAL, genre TEXT, author_id INTEGER);
INSERT INTO books VALUES (1, 'Sea', 10.5, 'Drama', 1), (2, 'Sun', 20.0, 'Crime', 1), (3, 'Ice', 7.25, 'Drama', 2),
  (4, 'Fog', 31.0, 'Crime', 2), (5, 'Rain', 3.5, NULL, 3);
CREATE TABLE authors (id INTEGER PRIMARY KEY, name TEXT);
INSERT INTO authors VALUES (1, 'Ada'), (2, 'Bo'), (3, 'Cy');
"""
SECOND = FIRST.replace("10.5", "11.5").replace("'Fog', 31.0, 'Crime'", "'Fog', 1.0, 'Drama'")
BOTH = (FIRST, SECOND)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("SELECT title FROM books WHERE price > 7.25", "SELECT b.title FROM books AS b WHERE NOT b.price <= 7.25"),
        ("SELECT title FROM books", "SELECT title FROM books ORDER BY price DESC"),
        ("SELECT AVG(price) FROM books", "SELECT SUM(price) / COUNT(*) FROM books"),
        ("SELECT SUM(price) FROM books", "SELECT SUM(price) + 1e-10 FROM books"),
        ("SELECT COUNT(*) FROM books", "SELECT COUNT(*) * 1.0 FROM books"),
        (
            "SELECT name FROM authors WHERE id IN (SELECT author_id FROM books)",
            "WITH x AS (SELECT author_id AS a FROM books) SELECT DISTINCT name FROM authors JOIN x ON x.a = authors.id",
        ),
        ("SELECT title FROM books ORDER BY price LIMIT 2", "select title from books order by price asc limit 2;"),
    ],
)
def test_equal_meaning_agrees(gold, answer):
    verdict = execution_match(answer, gold, BOTH)
    assert verdict.correct, verdict.why


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("SELECT title FROM books WHERE price > 7.25", "SELECT title FROM books WHERE price >= 7.25"),
        ("SELECT title FROM books ORDER BY price", "SELECT title FROM books"),
        ("SELECT title FROM books ORDER BY price", "SELECT title FROM books ORDER BY price DESC"),
        ("SELECT title, genre FROM books", "SELECT genre, title FROM books"),
        ("SELECT title FROM books", "SELECT title, genre FROM books"),
        ("SELECT genre FROM books", "SELECT DISTINCT genre FROM books"),
        ("SELECT id FROM books", "SELECT CAST(id AS TEXT) FROM books"),
        ("SELECT id FROM books", "SELECT title FROM shelves"),
        ("SELECT id FROM books", "I do not know."),
        ("SELECT genre FROM books WHERE id = 5", "SELECT 'None'"),
    ],
)
def test_other_meaning_does_not(gold, answer):
    verdict = execution_match(answer, gold, BOTH)
    assert not verdict.correct
    assert verdict.why


def test_luck_in_one_database_is_not_enough():
    gold, lucky = "SELECT COUNT(*) FROM books WHERE price > 10", "SELECT 3"
    assert execution_match(lucky, gold, (FIRST,)).correct
    assert not execution_match(lucky, gold, BOTH).correct


HOSTILE = [
    "DROP TABLE books",
    "DELETE FROM books",
    "INSERT INTO books (id) VALUES (9)",
    "UPDATE books SET price = 0",
    "CREATE TABLE x (y)",
    "CREATE TEMP TABLE x AS SELECT * FROM books",
    "ATTACH DATABASE '{path}' AS other",
    "VACUUM INTO '{path}'",
    "PRAGMA writable_schema = ON",
    "BEGIN; DROP TABLE books; COMMIT",
    "SELECT load_extension('x')",
    "SELECT 1; DROP TABLE books",
    "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT COUNT(*) FROM x",
    "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT n FROM x",
    "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n FROM x) SELECT n FROM x ORDER BY n",
    "SELECT zeroblob(1000000000)",
    "SELECT printf('%.*c', 1000000000, 'x')",
    f"SELECT COUNT(*) FROM {', '.join(f'books b{i}' for i in range(16))}",  # 5 to the 16th rows
    "SELECT '\ud800'",
    "SELECT 'a\0b",
]


@pytest.mark.parametrize("query", HOSTILE)
def test_hostile_queries_are_refused_and_change_nothing(query, tmp_path):
    connection = open_database(FIRST)
    before = run_query(connection, "SELECT * FROM books")
    start = time.monotonic()
    with pytest.raises(QueryFailed):
        run_query(connection, query.replace("{path}", str(tmp_path / "stolen.db")), max_seconds=0.2, max_rows=1000)
    assert time.monotonic() - start < 10  # stopped, not left to run: its own end is hours away or never
    assert run_query(connection, "SELECT * FROM books") == before
    assert list(tmp_path.iterdir()) == []


def test_a_hostile_answer_is_merely_wrong():
    for query in HOSTILE:
        assert not execution_match(query, "SELECT title FROM books", BOTH, max_seconds=0.1).correct
    assert execution_match("SELECT title FROM books", "SELECT title FROM books", BOTH).correct


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("SELECT a FROM b", "SELECT a FROM b"),
        ("SELECT a FROM b;", "SELECT a FROM b"),
        ("Sure! Here it is:\n```sql\nSELECT a\nFROM b;\n```\nIt selects a.", "SELECT a\nFROM b"),
        ("```\nselect a from b\n```", "select a from b"),
        ("The query is SELECT a FROM b\n\nThis picks a from b.", "SELECT a FROM b"),
        ("SELECT a FROM b WHERE c = 'x;y'; SELECT 2", "SELECT a FROM b WHERE c = 'x;y'"),
        ("WITH t AS (SELECT 1) SELECT * FROM t; done", "WITH t AS (SELECT 1) SELECT * FROM t"),
        ("With pleasure: SELECT a FROM b", "SELECT a FROM b"),
        ("```sql\nSELECT a FROM b", "SELECT a FROM b"),
        ("```text\nhello\n```\nSELECT a FROM b", "SELECT a FROM b"),
        ("```sql\nSELECT a\n\nFROM b;\n\nSELECT 2\n```", "SELECT a\n\nFROM b"),
        ("```sql\n-- names; all\nSELECT a FROM b\n```", "SELECT a FROM b"),
        ("I will select the names: SELECT a FROM b", "SELECT a FROM b"),
        ("To select rows, write\nselect a from b", "select a from b"),
        ("Try select a from (SELECT a FROM b)", "select a from (SELECT a FROM b)"),
        ("Try select a from b union\nSELECT c FROM d", "select a from b union\nSELECT c FROM d"),
        ("SELECT a -- all; of it\nFROM b; done", "SELECT a -- all; of it\nFROM b"),
        ("SELECT a /* x; y */ FROM b; done", "SELECT a /* x; y */ FROM b"),
        ("SELECT `a;b`, [c;d] FROM e; done", "SELECT `a;b`, [c;d] FROM e"),
        ('WITH "t u" AS (SELECT 1) SELECT * FROM "t u"', 'WITH "t u" AS (SELECT 1) SELECT * FROM "t u"'),
        ("<think>Maybe SELECT x FROM y?</think>SELECT a FROM b", "SELECT a FROM b"),
        ("<think>SELECT a FROM b</think>", "SELECT a FROM b</think>"),
        ("I cannot.", ""),
        ("", ""),
    ],
)
def test_query_is_fished_out_of_talk(text, query):
    assert extract_sql(text) == query


@given(st.text(max_size=300))
def test_any_text_gets_a_verdict(text):
    assert execution_match(text, "SELECT id, title FROM books", (FIRST,), max_seconds=0.2).correct in (True, False)


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM b ORDER BY a", True),
        ("SELECT a FROM b order  by a limit 2", True),
        ("SELECT a FROM (SELECT a FROM b ORDER BY (a)) AS c", False),
        ("SELECT a FROM b WHERE c = 'ORDER BY'", False),
        ("SELECT a FROM b WHERE c = '(' ORDER BY a", True),
        ('SELECT "a(" FROM b ORDER BY a', True),
        ('SELECT a FROM b WHERE c = "ORDER BY"', False),
        ("SELECT a FROM b -- ORDER BY a", False),
        ("SELECT a FROM b /* ORDER BY a */", False),
    ],
)
def test_only_the_outer_order_counts(query, ordered):
    assert orders_rows(query) is ordered


def test_results_of_many_large_values_are_stopped():
    query = (
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 500) SELECT zeroblob(900000 + n) FROM c"
    )
    with pytest.raises(QueryFailed, match="MB"):
        run_query(open_database(FIRST), query, max_seconds=60)


@pytest.mark.parametrize(
    ("gold", "row", "says"),
    [
        ("SELECT nope FROM books", {"databases": BOTH}, "no such column"),
        (None, {"databases": BOTH}, "query"),
        ("SELECT 1", {}, "databases"),
        ("SELECT 1", {"databases": []}, "databases"),
        ("SELECT 1", {"databases": FIRST}, "databases"),
        ("SELECT 1", {"databases": ["CREATE TABEL x (y)"]}, "script"),
    ],
)
def test_a_row_that_cannot_be_scored_is_refused_whatever_the_answer(gold, row, says):
    for answer in ("", "SELECT 1"):
        with pytest.raises(DataError, match=says):
            SCORERS["sql"](answer, gold, row)


ROW = st.tuples(st.one_of(st.none(), st.integers(-9, 9), st.floats(-9, 9), st.text(max_size=3)), st.integers(0, 2))


@given(st.lists(ROW, max_size=12), st.randoms(use_true_random=False))
def test_unordered_rows_are_a_multiset(rows, random_):
    shuffled = list(rows)
    random_.shuffle(shuffled)
    assert same_rows(shuffled, rows, ordered=False)
    assert same_rows(rows, rows, ordered=True)
    if rows:
        assert not same_rows([*rows, rows[0]], rows, ordered=False)
        changed = [("other row", 99), *shuffled[1:]]
        assert not same_rows(changed, rows, ordered=False)


def test_rows_that_rounding_sorts_the_other_way_still_pair_off():
    assert same_rows([(0.1 + 0.2, 1), (0.3, 2)], [(0.3, 1), (0.1 + 0.2, 2)], ordered=False)
    assert not same_rows([(0.3, 1), (0.3, 1)], [(0.3, 1), (0.3, 2)], ordered=False)


def test_threads_do_not_share_a_time_limit():
    endless = HOSTILE[12]
    gold = "SELECT title FROM books"
    with ThreadPoolExecutor(4) as pool:
        answers = [endless if i % 2 else gold for i in range(16)]
        verdicts = pool.map(lambda answer: execution_match(answer, gold, BOTH, max_seconds=0.3), answers)
        assert [verdict.correct for verdict in verdicts] == [i % 2 == 0 for i in range(16)]
