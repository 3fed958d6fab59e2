"""Questions with their queries, checked by running them.

A question is kept only if its answer is non-empty in two differently filled databases, its order is settled by the
question, and every obvious mistake (`forms.corruptions`) gives another answer in one of the two: so a right answer
cannot be had by luck.

Splits      train        training domains; forms without any held-out pair of parts
            tables       test domains; forms that occur in training
            combinations test domains; forms with a held-out pair: parts that training knows, never in one query
"""

from __future__ import annotations

import hashlib
import itertools
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from tunesmith.demo import forms
from tunesmith.demo.asks import JOINS, Contents, draw_ask
from tunesmith.demo.forms import Ask
from tunesmith.demo.schemas import Schema, base_schemas, fill, variant
from tunesmith.demo.wording import question
from tunesmith.score.sql import SqlRow, open_database, run_query, same_rows

FILLS = (1, 2)
HELD_OUT_PERCENT = 12
MOST_OF_A_FORM = 8
FREE_PARTS = ("from:", "and", "or")
JOINS_IN_TRAINING = 0.55
"""More than in the tests: joins are what is hardest to learn."""


@dataclass(frozen=True)
class Question:
    schema: Schema
    text: str
    ask: Ask

    @property
    def sql(self) -> str:
        return self.ask.sql()

    @property
    def parts(self) -> tuple[str, ...]:
        return forms.parts(self.ask)

    def databases(self) -> tuple[str, ...]:
        return databases(self.schema)

    def corrupted(self) -> dict[str, str]:
        """Wrong queries by the mistake they make; each gives another answer than `sql`."""
        return {name: wrong.sql() for name, wrong in forms.corruptions(self.ask, self.schema)}


def databases(schema: Schema) -> tuple[str, ...]:
    """The scripts of the two fills in which an answer is judged."""
    return tuple(fill(schema, seed) for seed in FILLS)


def form_of(parts: Iterable[str]) -> str:
    return " ".join(parts)


def held_out_pairs(parts: tuple[str, ...]) -> list[tuple[str, str]]:
    """The pairs of parts in this form that training must never see together. Which pairs is settled by a hash."""
    kinds = [part for part in parts if not part.startswith(FREE_PARTS)]
    pairs = [tuple(sorted((_plain(a), _plain(b)))) for a, b in itertools.combinations(kinds, 2)]
    return [(a, b) for a, b in pairs if a != b and _hash_percent(f"{a} with {b}") < HELD_OUT_PERCENT]


def _plain(part: str) -> str:
    """A condition counts as the same part on whichever table of a join it stands."""
    return part.replace("where:parent.", "where:")


def _hash_percent(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100


class Tables:
    """A schema with its two databases open, and the checks that need them."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.connections = [open_database(script) for script in databases(schema)]
        self.contents = Contents(schema, [_read(connection, schema) for connection in self.connections])

    def sound(self, ask: Ask) -> bool:
        answers = [run_query(connection, ask.sql()) for connection in self.connections]
        if not all(_says_something(rows) for rows in answers):
            return False
        if ask.order and not all(self._settled(connection, ask) for connection in self.connections):
            return False
        return all(self._differs(answers, wrong, ask) for _, wrong in forms.corruptions(ask, self.schema))

    def _settled(self, connection: sqlite3.Connection, ask: Ask) -> bool:
        keys = [row[-1] for row in run_query(connection, ask.order_keys_sql())]
        return len(set(keys)) == len(keys)

    def _differs(self, answers: list[list[SqlRow]], wrong: Ask, ask: Ask) -> bool:
        return any(
            not same_rows(run_query(connection, wrong.sql()), rows, ordered=ask.order is not None)
            for connection, rows in zip(self.connections, answers, strict=True)
        )


def _read(connection: sqlite3.Connection, schema: Schema) -> dict[str, dict[str, list[object]]]:
    contents: dict[str, dict[str, list[object]]] = {}
    for table in schema.tables:
        rows = run_query(connection, f"SELECT {', '.join(c.name for c in table.columns)} FROM {table.name}")
        contents[table.name] = {c.name: [row[i] for row in rows] for i, c in enumerate(table.columns)}
    return contents


def _says_something(rows: list[SqlRow]) -> bool:
    return bool(rows) and any(value not in (None, 0) for row in rows for value in row)


@lru_cache(maxsize=64)
def _tables(domain: str, seed: int) -> Tables:
    return Tables(variant(domain, seed))


def draw_questions(
    tables: Tables,
    random_: random.Random,
    count: int,
    wanted: Callable[[tuple[str, ...]], bool],
    joins: float = JOINS,
) -> list[Question]:
    """Up to `count` questions on one schema, of different forms that are `wanted`; about `joins` of them join."""
    found: dict[str, Question] = {}
    for _ in range(60 * count):
        ask = draw_ask(tables.schema, tables.contents, random_, joins)
        if ask is None:
            continue
        parts = forms.parts(ask)
        form = form_of(parts)
        if form in found or not wanted(parts):
            continue
        if tables.sound(ask):
            found[form] = Question(tables.schema, question(ask, tables.schema, random_), ask)
        if len(found) == count:
            break
    return list(found.values())


def training_questions(num_rows: int, turns: int, seed: int) -> list[list[Question]]:
    """Rows of up to `turns` questions on one schema each. The domains take turns, so that all are used alike, and
    plain forms, which are found soonest, stop at MOST_OF_A_FORM."""
    random_ = random.Random(f"train/{seed}")
    domains = list(base_schemas("train"))
    rows: list[list[Question]] = []
    times: Counter[str] = Counter()

    def wanted(parts: tuple[str, ...]) -> bool:
        return times[form_of(parts)] < MOST_OF_A_FORM and not held_out_pairs(parts)

    while len(rows) < num_rows:
        for domain in random_.sample(domains, len(domains)):
            drawn = draw_questions(_tables(domain, random_.randrange(10**6)), random_, turns, wanted, JOINS_IN_TRAINING)
            if drawn and len(rows) < num_rows:
                rows.append(drawn)
                times.update(form_of(question.parts) for question in drawn)
    return rows


def test_questions(kind: str, count: int, known: Iterable[tuple[str, ...]], seed: int) -> list[Question]:
    """`kind`: "tables" or "combinations"; `known`: the parts of each form that training holds. The forms differ as
    long as there are any left."""
    known = set(known)
    known_forms, known_parts = {form_of(parts) for parts in known}, {part for parts in known for part in parts}
    random_, domains = random.Random(f"{kind}/{seed}"), list(base_schemas("test"))
    used: set[str] = set()
    questions: list[Question] = []

    def wanted(parts: tuple[str, ...]) -> bool:
        if form_of(parts) in used:
            return False
        if kind == "tables":
            return form_of(parts) in known_forms
        return bool(held_out_pairs(parts)) and known_parts.issuperset(parts)

    while len(questions) < count:
        before = len(questions)
        for domain in random_.sample(domains, len(domains)):
            drawn = draw_questions(_tables(domain, random_.randrange(10**6)), random_, 1, wanted)
            questions += drawn
            used.update(form_of(question.parts) for question in drawn)
        if len(questions) == before:
            if not used:
                raise ValueError("no form of the training set can be asked about the test tables")
            used.clear()
    return questions[:count]
