"""Rows that begin alike share their beginning: every row can be read back, and nothing is weighed twice or lost."""

from __future__ import annotations

import functools
import operator

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.pack import SHORTEST, collate, micro_batches, micro_batches_of
from tunesmith.data.types import Batch, Example, Origin


def example(ids: list[int], row: int) -> Example:
    weights = np.random.default_rng(row).choice([0.0, 1.0, 0.5], len(ids)).astype(np.float32)
    return Example(np.array(ids, dtype=np.int64), weights, Origin("rows", row))


@st.composite
def families(draw):
    """Rows of which some begin alike, some are equal, and some are the beginning of others."""
    rows = []
    for stem in range(draw(st.integers(1, 3))):
        shared = [100 * stem + i % 7 for i in range(draw(st.integers(1, 3 * SHORTEST)))]
        for _ in range(draw(st.integers(1, 4))):
            rows.append(shared + draw(st.lists(st.integers(3, 5), max_size=6)))
    order = draw(st.permutations(range(len(rows))))
    return [example(rows[index], number) for number, index in enumerate(order)]


def rows_of(batch: Batch) -> list[list[int]]:
    """Each row as the model sees it: its parent's tokens and its own."""
    parents = {segment.parent for segment in batch.segments}
    rows = []
    for index, segment in enumerate(batch.segments):
        if index not in parents:
            start = [] if segment.parent is None else [batch.segments[segment.parent]]
            parts = [batch.token_ids[part.start : part.end].tolist() for part in (*start, segment)]
            places = [batch.positions[part.start : part.end].tolist() for part in (*start, segment)]
            assert functools.reduce(operator.iadd, places, []) == list(range(sum(map(len, parts))))
            rows.append(functools.reduce(operator.iadd, parts, []))
    return rows


@settings(max_examples=100, deadline=None)
@given(examples=families(), max_tokens=st.integers(1, 200))
def test_every_row_can_be_read_back_and_every_weight_is_there(examples, max_tokens):
    for batches in ([collate(examples, share=True)], micro_batches(examples, max_tokens, share=True)):
        found = [row for batch in batches for row in rows_of(batch)]
        assert sorted(found) == sorted(example.token_ids.tolist() for example in examples)
        total = sum(float(batch.loss_weights.sum()) for batch in batches)
        assert total == sum(float(example.loss_weights.sum()) for example in examples)
        assert sum(map(len, batches)) <= sum(map(len, examples))
        for batch in batches:
            assert batch.segments[0].start == 0
            assert batch.segments[-1].end == len(batch) == len(batch.positions)
            assert len(batch.origins) == len(batch.segments)
            for index, segment in enumerate(batch.segments):
                before = batch.segments[index - 1] if index else None
                assert segment.start == (before.end if before else 0)
                assert segment.parent is None or batch.segments[segment.parent].parent is None
    longest = max(map(len, examples))
    assert all(len(batch) <= max(max_tokens, longest) for batch in micro_batches(examples, max_tokens, share=True))


def test_questions_on_one_text_read_it_once():
    texts = [[100 + i for i in range(60)], [300 + i for i in range(50)]]
    examples = [example([*text, 7, 8, 9, row], row) for row, text in enumerate([texts[0], texts[1]] * 5)]
    assert len(collate(examples)) == 5 * (64 + 54)
    assert len(collate(examples, share=True)) == 63 + 53 + 10 * 1
    assert len(micro_batches(examples, 100, share=True)) == 2


def test_a_short_common_beginning_is_not_parted_from_its_rows():
    examples = [example([1] * (SHORTEST - 2) + [5, row], row) for row in range(4)]
    assert all(segment.parent is None for segment in collate(examples, share=True).segments)


def test_rows_that_stay_together_share_their_beginning_once():
    pairs = [[example([1] * 20 + [5, n], n), example([1] * 20 + [6, n, n], n)] for n in range(3)]
    for max_tokens in (1, 30, 60, 1000):
        batches = micro_batches_of(pairs, max_tokens, share=True)
        assert all(len(batch) <= max_tokens or len(batch.leaves) == 2 for batch in batches)
        assert sum(map(len, batches)) == 3 * (20 + 2 + 3)
        found = [example for batch in batches for example in (batch.examples[leaf] for leaf in batch.leaves)]
        assert sorted(map(id, found)) == sorted(id(row) for pair in pairs for row in pair)
        for batch in batches:
            rows = rows_of(batch)
            assert rows == [batch.examples[leaf].token_ids.tolist() for leaf in batch.leaves]
    apart = micro_batches_of(pairs, 1, share=False)
    assert [len(batch) for batch in apart] == [22 + 23] * 3
    assert all(segment.parent is None for batch in apart for segment in batch.segments)


def test_each_row_of_a_group_keeps_a_token_of_its_own():
    batch = micro_batches_of([[example([1] * 20, 0), example([1] * 24, 0)]], 100, share=True)[0]
    assert [len(segment) for segment in batch.segments] == [19, 1, 5]
