"""In which order rows are visited, and how a pass is cut into steps of rows or of tokens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.types import CHOSEN, REJECTED, Answer, Asked, Classified, Example, Message, Origin, Prompt
from tunesmith.objectives.classify import Classification, ClassifySettings
from tunesmith.objectives.distill import Distillation, DistillSettings
from tunesmith.objectives.order import Order, even_cuts, steps_per_epoch
from tunesmith.objectives.policy import PolicyGradient
from tunesmith.objectives.policy_losses import PolicySettings
from tunesmith.objectives.preference import PreferenceTuning
from tunesmith.objectives.preference_losses import PreferenceSettings
from tunesmith.objectives.reward import RewardModelling, RewardSettings
from tunesmith.objectives.sft import SFT

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=40)


def order_of(lengths, batch_tokens, groups=None, seed=0, shuffle=True):
    groups = groups or [None] * len(lengths)
    return Order(groups, batch_size=None, seed=seed, shuffle=shuffle, lengths=lengths, batch_tokens=batch_tokens)


def steps_of(order, count):
    return [rows.tolist() for rows, _ in itertools.islice(order.steps(), count)]


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 300), seed=st.integers(0, 5), shuffle=st.booleans())
def test_steps_of_tokens(lengths, batch_tokens, seed, shuffle):
    """Every row once a pass, the same number of steps in each, none empty, and each about as long as the others."""
    order = order_of(lengths, batch_tokens, seed=seed, shuffle=shuffle)
    total, number = sum(lengths), order.steps_per_epoch
    assert number == min(len(lengths), -(-total // batch_tokens)) == steps_per_epoch(lengths, None, batch_tokens)
    steps = steps_of(order, 3 * number)
    for start in range(0, len(steps), number):
        epoch = steps[start : start + number]
        assert all(epoch)
        assert sorted(itertools.chain(*epoch)) == list(range(len(lengths)))
        for step in epoch:
            assert abs(number * sum(lengths[row] for row in step) - total) <= number * max(lengths)


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 300), seed=st.integers(0, 5), done=st.integers(0, 60))
def test_a_cursor_of_steps_of_tokens_goes_on_where_it_stood(lengths, batch_tokens, seed, done):
    whole = steps_of(order_of(lengths, batch_tokens, seed=seed), done + 5)
    again = order_of(lengths, batch_tokens, seed=seed)
    again.done = done
    assert steps_of(again, 5) == whole[done:]


@given(length=st.integers(1, 50), size=st.integers(1, 9), count=st.integers(1, 9), seed=st.integers(0, 5))
def test_of_rows_of_one_length_tokens_are_rows(length, size, count, seed):
    """Where the rows of a pass fill its steps; where the last step by rows is short, those by tokens are more even."""
    in_rows = Order([None] * (size * count), batch_size=size, seed=seed, shuffle=True)
    in_tokens = order_of([length] * (size * count), size * length, seed=seed)
    assert steps_of(in_tokens, 2 * count) == steps_of(in_rows, 2 * count)
    for short in range(1, size):
        rows = size * count - short
        assert steps_per_epoch([length] * rows, None, size * length) == steps_per_epoch([length] * rows, size, None)


@given(lengths=LENGTHS, data=st.data())
def test_cuts_are_the_borders_nearest_to_even_ones(lengths, data):
    parts = data.draw(st.integers(1, len(lengths)))
    cuts = even_cuts(np.array(lengths), parts)
    assert cuts[0] == 0
    assert cuts[-1] == len(lengths)
    assert (np.diff(cuts) > 0).all()
    if max(lengths) * parts < sum(lengths):  # no row covers two even borders
        ends = np.concatenate([[0], np.cumsum(lengths)])
        for place, cut in enumerate(cuts):
            missed = np.abs(parts * ends - place * sum(lengths))
            assert missed[cut] == missed.min()


def test_groups_stay_one_after_the_other():
    groups = ["a", "b", "a", None, "b", "a", None, "c"] * 5
    lengths = np.random.default_rng(0).integers(1, 30, len(groups)).tolist()
    order = order_of(lengths, 60, groups, seed=1)
    for epoch in range(3):
        visited = [groups[row] or f"alone {row}" for row in order.of(epoch)]
        assert sum(a != b for a, b in itertools.pairwise(visited)) == len(set(visited)) - 1


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 300), num_steps=st.integers(1, 60))
def test_the_rows_of_the_first_steps(lengths, batch_tokens, num_steps):
    order = order_of(lengths, batch_tokens)
    assert order.first(num_steps).tolist() == sorted(set(itertools.chain(*steps_of(order, num_steps))))


@given(
    lengths=LENGTHS,
    batch=st.one_of(st.tuples(st.integers(1, 9), st.none()), st.tuples(st.none(), st.integers(1, 300))),
    tokens=st.integers(1, 4000),
    shuffle=st.booleans(),
    data=st.data(),
)
def test_the_step_by_which_so_many_tokens_were_visited(lengths, batch, tokens, shuffle, data):
    """Known beforehand and wherever the cursor stands: the first step, as counted one by one."""
    groups = data.draw(st.lists(st.sampled_from([None, "a", "b"]), min_size=len(lengths), max_size=len(lengths)))
    order = Order(groups, batch_size=batch[0], batch_tokens=batch[1], seed=3, shuffle=shuffle, lengths=lengths)
    order.done = data.draw(st.integers(0, 5))
    found, order.done = order.steps_until(tokens), 0
    visited = list(itertools.accumulate(sum(lengths[row] for row in step) for step in steps_of(order, found)))
    assert visited[-1] >= tokens
    assert found == 1 or visited[-2] < tokens


def test_a_number_of_steps_is_known_at_once_however_large():
    order = Order([None] * 7, batch_size=2, seed=0, shuffle=True, lengths=[5] * 7)
    assert order.steps_until(35 * 10**15) == 4 * 10**15
    assert order.steps_until(35 * 10**15 + 1) == 4 * 10**15 + 1


def one(kind, number, length, **more):
    ids, weights = np.arange(length, dtype=np.int64), np.ones(length, np.float32)
    return kind(ids, weights, Origin("rows", number), **more)


GIVEN = [3 + 5 * number % 17 for number in range(13)]
PLAIN = [one(Example, number, length) for number, length in enumerate(GIVEN)]
SIDES = [
    one(Answer, number, length + (side == CHOSEN), side=side)
    for number, length in enumerate(GIVEN)
    for side in (CHOSEN, REJECTED)
]
TEXTS = [one(Classified, number, length, labels=("ab"[number % 2],)) for number, length in enumerate(GIVEN)]
KNOWN = {
    "sft": lambda **batch: SFT(PLAIN, [], **batch),
    "distill": lambda **batch: Distillation(PLAIN, [], DistillSettings(teacher="x"), **batch),
    "preference": lambda **batch: PreferenceTuning(SIDES, [], PreferenceSettings(reference="online"), **batch),
    "orpo": lambda **batch: PreferenceTuning(SIDES, [], PreferenceSettings(loss="orpo"), **batch),
    "reward": lambda **batch: RewardModelling(SIDES, [], RewardSettings(), **batch),
    "classify": lambda **batch: Classification(TEXTS, [], ClassifySettings(), **batch),
}


@pytest.mark.parametrize("tokens", [1, 40, 151, 500])
@pytest.mark.parametrize("kind", KNOWN)
def test_an_objective_knows_after_which_step_so_many_tokens_were_read(kind, tokens):
    """Of pairs both sides count."""
    made = KNOWN[kind](batch_size=3, seed=1)
    found = made.steps_until(tokens)
    read = [sum(map(len, step.examples)) for step in itertools.islice(made.steps(None), found)]
    assert sum(read) >= tokens > sum(read[:-1])
    assert made.steps_until(tokens) == found, "it does not matter where the steps stand"


def test_an_objective_whose_rows_are_written_while_training_does_not():
    asked = [
        Asked(
            row.token_ids, 0 * row.loss_weights, row.origin, prompt=Prompt((Message("user", "?"),), "?", {}, row.origin)
        )
        for row in PLAIN
    ]
    sampled = DistillSettings(teacher="x", answers="sampled")
    assert Distillation(asked, [], sampled, batch_size=2, seed=0).steps_until(10) is None
    policy = PolicySettings(rewards=("length:3",))
    assert PolicyGradient(asked, [], policy, batch_size=2, seed=0).steps_until(10) is None


@pytest.mark.parametrize("both", [{"batch_size": None}, {"batch_size": 2, "batch_tokens": 8}])
def test_a_step_takes_rows_or_tokens(both):
    with pytest.raises(ValueError, match="batch_size rows, or batch_tokens tokens"):
        Order([None] * 4, seed=0, shuffle=False, **both)
