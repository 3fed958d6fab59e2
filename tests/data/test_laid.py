"""Rows that lie flat in files are rows as any others, and the records beside them come back as they were."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data.cache.laid import Table
from tunesmith.data.cache.laying import Laying
from tunesmith.data.cache.plain_values import NotFlat, of_plain, plain
from tunesmith.data.pack import micro_batches
from tunesmith.data.types import Answer, Asked, Classified, Conversation, Example, Message, Origin, Prompt

WORDS = st.text(max_size=4)
PLACES = st.integers(0, 5)
MARGINS = st.none() | st.integers() | st.floats(allow_nan=False) | WORDS


@st.composite
def examples(draw):
    tokens = draw(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), max_size=5))
    ids, learned = ([token[at] for token in tokens] for at in (0, 1))
    arrays = np.array(ids, dtype=np.int64), np.array(learned, dtype=np.float32)
    common = (*arrays, Origin(draw(WORDS), draw(st.integers(0, 2**40))), draw(st.none() | WORDS))
    told = {"answers": draw(st.none() | st.lists(st.tuples(PLACES, PLACES), max_size=2).map(tuple))}
    kind = draw(st.sampled_from([Example, Answer, Classified]))
    if kind is Example:
        return Example(*common, **told)
    if kind is Answer:
        return Answer(*common, draw(WORDS), draw(MARGINS), **told)
    return Classified(*common, tuple(draw(st.lists(WORDS, max_size=2))), draw(st.booleans()), **told)


def laid(folder, rows, meanings=()):
    with Laying(folder) as laying:
        for start in range(0, len(rows), 3):
            laying.add(rows[start : start + 3])
        laying.add_meanings(meanings)
    return Table(folder, laying.described())


def fields(example):
    values = [getattr(example, name) for name in example.__dataclass_fields__]
    of_arrays = [(value.dtype, value.tolist()) if isinstance(value, np.ndarray) else repr(value) for value in values]
    return [*of_arrays, len(example), example.num_learned]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(examples(), max_size=8))
def test_a_laid_row_is_an_example_as_any_other(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("laid")
    for one, other in zip(rows, laid(folder, rows).examples(), strict=True):
        assert isinstance(other, type(one))
        assert fields(other) == fields(one)
        for copied in (replace(other, group="else"), pickle.loads(pickle.dumps(other)), copy.deepcopy(other)):
            assert type(copied) is type(one)
            assert fields(replace(copied, group=one.group)) == fields(one)


def test_laid_rows_are_packed_as_any_others(tmp_path):
    weights = np.array([0, 0, 1, 1, 0, 1], dtype=np.float32)
    rows = [Example(np.arange(6) + i % 3, weights, Origin("f", i)) for i in range(9)]
    for share in (False, True):
        cut = [micro_batches(of, 20, share=share) for of in (rows, laid(tmp_path, rows).examples())]
        for one, other in zip(*cut, strict=True):
            assert one.token_ids.equal(other.token_ids)
            assert one.loss_weights.equal(other.loss_weights)
            assert one.origins == other.origins


def test_meanings_are_a_sequence(tmp_path):
    rows = [Conversation((Message("user", f"é {i}"),), Origin("f", i)) for i in range(5)]
    found = laid(tmp_path, [], meanings=rows).meanings()
    assert list(found) == rows
    assert (found[-1], found[1:3]) == (rows[-1], rows[1:3])
    with pytest.raises(IndexError):
        found[5]


@pytest.mark.parametrize(
    "example",
    [
        Example(np.array([1, 2]), np.array([0, 0.5], dtype=np.float32), Origin("f", 1)),
        Example(np.array([1, -2]), np.array([0, 1], dtype=np.float32), Origin("f", 1)),
        Asked(np.array([1]), np.zeros(1, np.float32), Origin("f", 1), prompt=Prompt((), "", {}, Origin("f", 1))),
    ],
)
def test_what_cannot_be_laid_flat_is_refused(tmp_path, example):
    with Laying(tmp_path) as laying, pytest.raises(NotFlat):
        laying.add([example])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.tuples(st.integers()), inner),
    )
)
def test_plain_values_come_back_as_they_were(value):
    for one in (value, Conversation((Message("user", "a", tool_calls=({"a": value},)),), Origin("f", 1))):
        again = of_plain(json.loads(json.dumps(plain(one))))
        assert repr(again) == repr(one)


def test_values_that_json_does_not_know_are_refused():
    for value in (b"bytes", {1, 2}, np.float32(1), object()):
        with pytest.raises(NotFlat):
            plain({"a": [value]})
