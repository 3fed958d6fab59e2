"""The SQL task: every question sound in both databases, the splits apart, the same for the same seed."""

from __future__ import annotations

from collections import Counter

import pytest

from tunesmith.demo import domains, forms, task
from tunesmith.demo.generator import FILLS, form_of, held_out_pairs
from tunesmith.demo.schemas import base_schemas, fill, parse, variant
from tunesmith.score.sql import open_database, run_query, same_rows


@pytest.fixture(scope="module")
def small():
    return task.make_task(num_rows=120, num_test=80, seed=3)


@pytest.fixture(scope="module")
def questions(small):
    return [question for row in small.training for question in row] + small.tables + small.combinations


def test_many_base_schemas_with_train_and_test_apart():
    train, test = base_schemas("train"), base_schemas("test")
    assert len(train) + len(test) >= 60

    def tables(base):
        return {table.name for tables in base.values() for table in tables}

    def columns(base):
        return {column.name for tables in base.values() for table in tables for column in table.columns}

    assert tables(train).isdisjoint(tables(test))
    assert columns(train) & columns(test) == {"name"}
    for text in (domains.TRAIN, domains.TEST):
        names = [table.name for tables in parse(text).values() for table in tables]
        assert len(names) == len(set(names))
        assert all(len(tables) in (2, 3) for tables in parse(text).values())


@pytest.mark.parametrize("domain", [*base_schemas("train"), *base_schemas("test")])
def test_every_schema_fills_two_ways(domain):
    schema = variant(domain, 5)
    assert schema == variant(domain, 5)
    scripts = [fill(schema, seed) for seed in FILLS]
    assert scripts == [fill(schema, seed) for seed in FILLS]
    first, second = (open_database(script) for script in scripts)
    for table in schema.tables:
        rows = run_query(first, f"SELECT * FROM {table.name}")
        assert len(rows) >= 30
        assert not same_rows(rows, run_query(second, f"SELECT * FROM {table.name}"), ordered=False)
    for child, parent in schema.pairs():
        link = child.link.name
        lost = f"SELECT * FROM {child.name} WHERE {link} NOT IN (SELECT {parent.key} FROM {parent.name})"
        childless = f"SELECT * FROM {parent.name} WHERE {parent.key} NOT IN (SELECT {link} FROM {child.name})"
        assert run_query(first, lost) == []
        assert run_query(first, childless)


def test_answers_are_not_empty_and_mistakes_show(questions):
    databases = {}
    for question in questions:
        key = (question.schema.domain, question.schema.seed)
        if key not in databases:
            databases[key] = [open_database(script) for script in question.databases()]
        answers = [run_query(connection, question.sql) for connection in databases[key]]
        assert all(answers), question.sql
        assert all(any(value not in (None, 0) for row in rows for value in row) for rows in answers), question.sql
        ordered = question.ask.order is not None
        for mistake, wrong in question.corrupted().items():
            found = [run_query(connection, wrong) for connection in databases[key]]
            same = [same_rows(a, b, ordered=ordered) for a, b in zip(found, answers, strict=True)]
            assert not all(same), f"{question.sql}: {mistake} gives the same rows"


def test_most_kinds_of_mistakes_are_tried(questions):
    mistakes = {mistake for question in questions for mistake in question.corrupted()}
    assert len(mistakes) >= 14, mistakes


def test_every_part_of_the_grammar_occurs(small):
    parts = {part for row in small.training for question in row for part in question.parts}
    wanted = {
        f"select:{select}" for select in ("cols1", "cols2", "star", "distinct", "count", "sum", "avg", "key_count")
    }
    wanted |= {f"where:{kind}" for kind in ("eq", "gt", "between", "prefix", "in", "null", "above_avg", "has_child")}
    wanted |= {"from:one", "from:join", "and", "having:count_ge", "order:asc", "order:desc.limit"}
    assert wanted <= parts, wanted - parts


def test_hundreds_of_forms_and_none_crowds_out_the_rest(small):
    times = Counter(form_of(question.parts) for row in small.training for question in row)
    assert len(times) >= 300
    assert max(times.values()) <= 12 * task.NUM_BLOCKS  # the cap, and the row that went over it


def test_unseen_tables_ask_known_forms(small):
    known = small.forms()
    domains_of = {row[0].schema.domain for row in small.training}
    assert domains_of <= set(base_schemas("train"))
    for question in small.tables:
        assert question.parts in known
        assert question.schema.domain in base_schemas("test")


def test_unseen_combinations_pair_known_parts_anew(small):
    known = small.forms()
    known_parts = {part for parts in known for part in parts}
    together = {frozenset((a, b)) for parts in known for a in parts for b in parts}
    for question in small.combinations:
        assert question.parts not in known
        assert set(question.parts) <= known_parts
        assert held_out_pairs(question.parts)
        assert any(frozenset((a, b)) not in together for a in question.parts for b in question.parts)
        assert question.schema.domain in base_schemas("test")
    assert not any(held_out_pairs(parts) for parts in known)


def test_test_questions_differ_in_form(small):
    for questions_ in (small.tables, small.combinations):
        times = Counter(form_of(question.parts) for question in questions_)
        assert len(times) >= 0.8 * len(questions_)


def test_same_seed_same_task():
    first, again, other = (task.make_task(num_rows=12, num_test=10, seed=seed) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_every_condition_is_worded_several_ways():
    import random

    from tunesmith.demo.wording import question as word

    made = task.make_task(num_rows=30, num_test=5, seed=1)
    for row in made.training:
        for question in row:
            wordings = {word(question.ask, question.schema, random.Random(seed)) for seed in range(40)}
            assert len(wordings) >= 2, wordings


def test_words_name_what_the_query_needs(questions):
    """Each value, limit and output column of the query stands in the question: nothing is left to guess."""
    for question in questions:
        ask = question.ask
        values = [value for atom in ask.atoms for a in (atom, atom.inner) if a for value in a.values]
        names = [field.column.phrase for field in ask.fields]
        names += [ask.order.by.column.phrase] if ask.order and isinstance(ask.order.by, forms.Field) else []
        values += [ask.having.value] if ask.having else []
        values += [str(ask.order.limit)] if ask.order and ask.order.limit > 1 else []
        for word in [*values, *names]:
            assert word in question.text, (word, question.text)
