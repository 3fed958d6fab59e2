"""Rows that begin alike share their beginning: every row can be read back, and nothing is weighed twice or lost."""

from __future__ import annotations

import functools
import operator

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.pack import SHORTEST, _best_fit, _groups, collate, micro_batches, micro_batches_of
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


def best_fit_by_looking(lengths: list[int], order: list[int], max_tokens: int) -> list[int]:
    """The rooms left, by looking at every group for each row."""
    rooms: list[int] = []
    for index in order:
        fitting = [room for room in rooms if room >= lengths[index]]
        room = min(fitting, default=max_tokens)
        if fitting:
            rooms.remove(room)
        rooms.append(room - lengths[index])
    return sorted(rooms)


def number_of_groups_by_first_fit(lengths: list[int], max_tokens: int) -> int:
    """The fewest of first fit and of even groups, as they are found by looking at every group for each row."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    rooms: list[int] = []
    for index in order:
        at = next((i for i, room in enumerate(rooms) if room >= lengths[index]), None)
        if at is None:
            rooms.append(max_tokens)
        rooms[len(rooms) - 1 if at is None else at] -= lengths[index]
    for count in range(-(-sum(lengths) // max_tokens), len(rooms)):
        sums = [0] * count
        for index in order:
            at = min(range(count), key=lambda i: (sums[i], i))
            sums[at] += lengths[index]
        if max(sums) <= max_tokens:
            return count
    return len(rooms)


LENGTHS = st.integers(1, 60).flatmap(
    lambda most: st.tuples(st.just(most), st.lists(st.integers(1, most + 3), max_size=25))
)


@settings(deadline=None)
@given(drawn=LENGTHS)
def test_every_row_is_in_one_group_and_none_is_too_large(drawn):
    most, lengths = drawn
    groups = _groups(lengths, most)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(group for group in groups)
    assert all(sum(lengths[index] for index in group) <= most or len(group) == 1 for group in groups)
    assert groups == _groups(lengths, most)


@settings(deadline=None)
@given(drawn=LENGTHS)
def test_each_row_goes_where_it_leaves_the_least_room(drawn):
    most, lengths = drawn
    order = [index for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]) if lengths[index] <= most]
    groups = _best_fit(lengths, order, most)
    rooms = sorted(most - sum(lengths[index] for index in group) for group in groups)
    assert rooms == best_fit_by_looking(lengths, order, most)


def test_best_fit_fills_no_worse_than_first_fit_did():
    rng = np.random.default_rng(0)
    for draw in range(200):
        shape = rng.uniform(0.2, 1.5)
        most = int(rng.integers(30, 500))
        lengths = np.clip(rng.lognormal(3, shape, rng.integers(1, 60)), 1, most).astype(int).tolist()
        assert len(_groups(lengths, most)) <= number_of_groups_by_first_fit(lengths, most), (draw, most, lengths)


@settings(deadline=None, max_examples=300)
@given(drawn=LENGTHS)
def test_no_lengths_are_filled_worse_than_by_first_fit(drawn):
    most, lengths = drawn
    lengths = [length for length in lengths if length <= most]
    assert len(_groups(lengths, most)) <= number_of_groups_by_first_fit(lengths, most)


def test_rows_that_are_packed_anew_after_a_part_of_the_steps_are_packed_alike():
    rng = np.random.default_rng(1)
    rows = [example(rng.integers(0, 50, length).tolist(), row) for row, length in enumerate(rng.integers(2, 90, 48))]
    steps = [[batch.origins for batch in micro_batches(rows[at : at + 12], 128)] for at in range(0, 48, 12)]
    again = [[batch.origins for batch in micro_batches(rows[at : at + 12], 128)] for at in range(24, 48, 12)]
    assert steps[2:] == again
