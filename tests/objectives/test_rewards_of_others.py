"""Rewards written for verl and OpenRLHF, and the rows that rewards can judge."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_policy_gradient import asked, objective_of
from test_rewards import built

from tunesmith.errors import DataError

THEIRS = """
import asyncio

asked = set()


async def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    asked.add(solution_str)
    while len(asked) < 3:  # all answers are asked at the same time
        await asyncio.sleep(0.01)
    found = float(solution_str == ground_truth)
    return {"score": found, "acc": True} if data_source == "x" else found


async def fails(data_source, solution_str, ground_truth, extra_info=None):
    await asyncio.sleep(0.0)
    if solution_str == "b":
        raise ValueError("boo")
    return 1.0


async def reward_func(queries, prompts, labels):
    await asyncio.sleep(0.0)
    return {"rewards": [float(query == prompt + label) for query, prompt, label in zip(queries, prompts, labels)]}


async def bare(queries, prompts, labels):
    return [0.5 for _ in queries]


def trl(completions, **columns):
    return [0.0 for _ in completions]
"""


@pytest.fixture
def theirs(tmp_path):
    path = tmp_path / "theirs.py"
    path.write_text(THEIRS)
    return path


def test_coroutine_functions_of_others_are_awaited(theirs):
    columns = {"answer": ["a", "b", "x"], "data_source": ["x", "y", "x"]}
    assert built(f"verl:{theirs}:compute_score", "a", "b", "c", **columns) == [1.0, 1.0, 0.0]
    assert built(f"openrlhf:{theirs}:reward_func", "a", "b", "c", **columns) == [1.0, 1.0, 0.0]
    assert built(f"openrlhf:{theirs}:bare", "a", "b", "c", **columns) == [0.5] * 3


def test_an_answer_at_which_one_fails_is_named(theirs):
    with pytest.raises(DataError, match="failed: ValueError: boo") as caught:
        built(f"verl:{theirs}:fails", "a", "b", "c", answer=["a", "b", "c"])
    assert caught.value.where == "rows, row 2"


def rows(*columns):
    return [replace(one, prompt=replace(one.prompt, columns=own)) for one, own in zip(asked(9), columns, strict=False)]


@pytest.mark.parametrize("kind", ["verl:{}:compute_score", "openrlhf:{}:reward_func"])
def test_rows_without_a_right_answer_are_refused(theirs, kind):
    name = kind.format(theirs)
    with pytest.raises(DataError, match=r"no row has the column 'answer'.*(verl|openrlhf):"):
        objective_of(rewards=(name,), rows=rows({"x": 1}, {"x": 2}))
    some = rows({"answer": "a"}, {"answer": None}, {"answer": ""}, {"x": 1}, {"answer": 0})
    with pytest.raises(DataError, match=r"nothing stands in the column 'answer'.*(verl|openrlhf):") as caught:
        objective_of(rewards=("exact", name), rows=some)
    assert caught.value.where == "2 rows (prompts, row 2; prompts, row 4)"
    objective_of(rewards=(name,), rows=[some[0], some[2], some[4]])
    objective_of(rewards=("exact",), rows=some)  # to a scorer, nothing is that there is no answer


@pytest.mark.parametrize(
    "column", ["prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra"]
)
def test_a_column_that_an_argument_would_hide_is_refused(theirs, column):
    clashing = rows({"answer": "a"}, {"answer": "b", column: 1})
    for keys in ({"rewards": (f"{theirs}:trl",)}, {"rewards": ("json", f"{theirs}:trl")}):
        with pytest.raises(DataError, match="has the name of an argument") as caught:
            objective_of(rows=clashing, **keys)
        assert (caught.value.where, caught.value.found) == ("prompts, row 2", column)
        assert f"data.columns={{row_{column}: {column}}}" in str(caught.value)
    with pytest.raises(DataError, match=f"objective.gold=row_{column}"):
        objective_of(rows=clashing, rewards=("exact",), gold=column)
    objective_of(rows=clashing, rewards=("json", "exact", f"verl:{theirs}:compute_score"))  # are not handed it
