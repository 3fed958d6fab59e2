"""A session asked from Python: what it takes, and what it refuses in a sentence."""

from __future__ import annotations

import pytest
from small_run import make_model

import tunesmith
from tunesmith.data.types import Message
from tunesmith.errors import DataError, RecipeError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("place") / "model"))


IMPOSSIBLE = [
    (tunesmith.Params(temperature=-1), {}, "cannot be negative"),
    (tunesmith.Params(top_p=2), {}, "top_p is 2"),
    (tunesmith.Params(max_new_tokens=0), {}, "max_new_tokens is at least 1"),
    (tunesmith.Params(num_beams=2, temperature=1), {}, "temperature is 0 with it"),
    (tunesmith.Params(num_beams=2), {"num_samples": 2}, "neither streamed nor sampled"),
    (tunesmith.Params(), {"num_samples": 0}, "num_samples is at least 1"),
    (tunesmith.Params(temperature="warm"), {}, "no number"),
    ({"temperature": 1}, {}, "params are tunesmith.Params"),
]


@pytest.mark.parametrize(("params", "options", "says"), IMPOSSIBLE)
def test_answers_that_cannot_be_are_refused_in_a_sentence(model, params, options, says):
    session = tunesmith.open_session(model)
    with pytest.raises(RecipeError, match=says):
        session.answer(["hi"], params=params, **options)


def test_what_is_asked_may_be_dictionaries_and_one_alone_is_refused(model):
    session, few = tunesmith.open_session(model), tunesmith.Params(max_new_tokens=3)
    heard: list[str] = []
    asked = [{"role": "user", "content": "hi"}]
    answers = session.answer(["hi", asked, [Message("user", "hi")]], params=few)
    session.stream(asked, few, heard.append)
    assert {*answers, "".join(heard)} == {answers[0]}
    for alone in ("hi", asked):
        with pytest.raises(DataError, match="one alone"):
            session.answer(alone, params=few)
    with pytest.raises(RecipeError, match="neither streamed"):
        session.stream("hi", tunesmith.Params(num_beams=2), heard.append)
    plain = tunesmith.open_session(model, template="plain")
    if not plain.prompt_ids([Message("user", "")]):
        with pytest.raises(DataError, match="no token to go on from"):
            plain.answer([""], params=few)
