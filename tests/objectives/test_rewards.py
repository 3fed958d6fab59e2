"""Rewards: TRL's signature, what is built in, and what a function can do wrong."""

from __future__ import annotations

import asyncio
import importlib
import math
import signal
import sys
import threading
import time

import pytest

from tunesmith.data.types import Origin
from tunesmith.errors import DataError, RecipeError
from tunesmith.objectives.rewards import Completion, Reward, Told, judge, load, means_of, source_of, total


def completions(*texts, prompt="q", **columns):
    return [
        Completion(prompt, text, list(range(len(text))), {k: v[i] for k, v in columns.items()}, Origin("rows", i + 1))
        for i, text in enumerate(texts)
    ]


def of(function, weight=1.0):
    return [Reward("mine", function, weight)]


def test_a_function_gets_lists_by_keyword_and_every_column():
    seen = {}

    def reward(prompts, completions, completion_ids, answer, **kwargs):
        kwargs["log_metric"]("mine", 3)
        kwargs["log_extra"]("why", ["a", "b"])
        more = {key: value for key, value in kwargs.items() if not callable(value) and key != "trainer_state"}
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, answer=answer, more=more)
        return [float(kwargs["trainer_state"].global_step), None]

    told = Told(7)
    found = judge(of(reward), completions("a", "bc", answer=["x", "y"], extra=[1, 2]), 5, told)
    assert (told.metrics, told.extra) == ({"mine": 3.0}, {"why": ["a", "b"]})
    assert seen == {
        "prompts": ["q", "q"],
        "completions": ["a", "bc"],
        "ids": [[0], [0, 1]],
        "answer": ["x", "y"],
        "more": {"extra": [1, 2]},
    }
    assert found[0][0] == 7.0
    assert math.isnan(found[0][1])


def test_a_prompt_of_messages_gets_messages():
    asked = [{"role": "user", "content": "q"}]

    def reward(completions, **_):
        return [float(completion == [{"role": "assistant", "content": "a"}]) for completion in completions]

    assert judge(of(reward), completions("a", prompt=asked), 5) == [[1.0]]


def test_coroutines_are_awaited():
    async def reward(completions, **_):
        return [float(len(text)) for text in completions]

    assert judge(of(reward), completions("abc"), 5) == [[3.0]]


def test_several_rewards_are_weighed_and_what_does_not_apply_is_left_out():
    two = [Reward("a", None, 2.0), Reward("b", None, 0.5)]
    found = total([[1.0, math.nan, math.nan], [4.0, 4.0, math.nan]], two)
    assert found[:2] == [4.0, 2.0]
    assert math.isnan(found[2])


def raising(completions, **_):
    if "bad" in completions:
        raise ValueError("boo")
    return [0.0] * len(completions)


WRONG = {
    "raises": (raising, r"mine failed: ValueError: boo"),
    "too few": (lambda completions, **_: [1.0], "one value for each"),
    "no list": (lambda completions, **_: 3.0, "one value for each"),
    "nothing": (lambda completions, **_: None, "one value for each"),
    "not a number": (lambda completions, **_: [math.nan, 1.0], "no finite number"),
    "infinite": (lambda completions, **_: [1.0, math.inf], "no finite number"),
    "text": (lambda completions, **_: ["1", 2], "no finite number"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_function_does_wrong_is_said_with_its_name_and_row(case):
    function, says = WRONG[case]
    with pytest.raises(DataError, match=says) as caught:
        judge(of(function), completions("fine", "bad"), 5)
    if case in ("raises", "not a number", "infinite", "text"):
        row = 2 if case in ("raises", "infinite") else 1
        assert f"rows, row {row}" in str(caught.value)


def test_a_row_for_which_alone_there_is_no_one_value_is_named():
    def reward(completions, **_):
        return [1.0 for text in completions if text != "bad"]

    with pytest.raises(DataError, match="one value for each") as caught:
        judge(of(reward), completions("fine", "bad"), 5)
    assert "rows, row 2" in str(caught.value)


def test_a_function_that_would_end_the_process_is_an_error():
    with pytest.raises(DataError, match="asked Python to exit"):
        judge(of(lambda completions, **_: sys.exit(3)), completions("a"), 5)


def test_a_function_that_sets_alarms_is_told_why_it_cannot():
    def alarmed(completions, **_):
        signal.signal(signal.SIGALRM, lambda *_: None)

    with pytest.raises(DataError, match=r"(?s)main thread.*parsing_timeout=None"):
        judge(of(alarmed), completions("a"), 5)


def test_all_calls_of_one_coroutine_function_share_a_loop():
    loops = []

    async def reward(completions, **_):
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(completions)

    mine = of(reward)
    for _ in range(3):
        judge(mine, completions("a"), 5)
    assert len(set(map(id, loops))) == 1
    assert not loops[0].is_closed()


def test_the_thread_of_a_reward_ends_with_its_run_and_another_call_begins_another():
    threads = []

    def reward(completions, **_):
        threads.append(threading.current_thread())
        return [0.0]

    mine = of(reward)
    for _ in range(2):
        judge(mine, completions("a"), 5)
    mine[0].close()
    threads[0].join(5)
    assert threads[0] is threads[1]
    assert not threads[0].is_alive()
    judge(mine, completions("a"), 5)
    assert threads[2] is not threads[0]


def test_a_number_too_large_for_a_float_is_no_reward():
    with pytest.raises(DataError, match="no finite number"):
        judge(of(lambda completions, **_: [10**400]), completions("a"), 5)


def test_a_function_that_hangs_is_left():
    begun = time.monotonic()
    with pytest.raises(DataError, match="did not answer within") as caught:
        judge(of(lambda completions, **_: time.sleep(30)), completions("a"), 0.2)
    assert "rows, row 1" in str(caught.value)
    assert time.monotonic() - begun < 25


def built(name, *texts, gold="answer", **columns):
    return judge(load([name], None, gold), completions(*texts, **columns), 5)[0]


def test_what_is_built_in():
    assert built("exact", "Paris", "London", answer=["paris", "Paris"]) == [1.0, 0.0]
    assert built("number", "it is 42", "43", answer=["#### 42", 42]) == [1.0, 0.0]
    assert built("contains", "it is blue", "red", gold="solution", solution=["blue", "blue"]) == [1.0, 0.0]
    assert built("format:<answer>.*</answer>", "<answer>4</answer>", "4") == [1.0, 0.0]
    assert built("length:4", "abcd", "ab", "abcdef") == [0.0, -0.5, -0.5]
    assert built("json", '{"a": 1}', "{a}") == [1.0, 0.0]
    assert built("repetition", "a b c d", "a b c a b c a b c") == pytest.approx([0.0, 3 / 7 - 1])
    scripts = ["CREATE TABLE t(a); INSERT INTO t VALUES (1), (2)"]
    found = built("sql", "SELECT MAX(a) FROM t", "SELECT 1", answer=["SELECT 2"] * 2, databases=[scripts] * 2)
    assert found == [1.0, 0.0]


def test_a_column_that_is_not_there_is_said():
    with pytest.raises(DataError, match="no column 'answer'"):
        built("exact", "a")


def test_functions_in_files_and_modules(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def short(completions, **kwargs):\n    return [-len(c) for c in completions]\n\nnumber = 3\n")
    assert built(f"{path}:short", "abc") == [-3.0]
    assert load(["tunesmith.demo.task:execution_reward"], [0.5], "answer")[0].weight == 0.5


OTHERS = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(solution_str == ground_truth) + (data_source == "x")}


def reward_func(queries, prompts, labels):
    return {"rewards": [float(query == prompt + label) for query, prompt, label in zip(queries, prompts, labels)]}
"""


def test_rewards_that_are_called_alike_are_told_apart(tmp_path):
    names = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "mine.py"
        path.write_text(f"def f(completions, **kwargs):\n    return [{len(names)}.5] * len(completions)\n")
        names.append(f"{path}:f")
    rewards = load(names, None, "answer")
    means = means_of(rewards, judge(rewards, completions("a", "b"), 5))
    assert means == {f"rewards/{name}": value for name, value in zip(names, (0.5, 1.5), strict=True)}
    assert means_of(rewards[:1], [[math.nan, 2.0]]) == {"rewards/mine.py:f": 2.0}
    with pytest.raises(RecipeError, match="twice"):
        load([names[0], "json", names[0]], None, "answer")


@pytest.mark.parametrize("kind", ["", "verl:", "openrlhf:"])
@pytest.mark.parametrize("folder", ["mine", "tunesmith"])
def test_another_code_is_another_source_wherever_it_stands(tmp_path, kind, folder):
    found = set()
    (tmp_path / folder).mkdir()
    path = tmp_path / folder / "judges.py"
    for sign in "+-":
        path.write_text(f"def f(*args, **kwargs):\n    return {sign}1.0\n")
        importlib.invalidate_caches()
        found.add(source_of(load([f"{kind}{path}:f"], None, "answer")))
    assert len(found) == 2


@pytest.mark.parametrize("name", ["length:0", "length:-3"])
def test_a_length_is_at_least_one_token(name):
    with pytest.raises(RecipeError, match=f"(?s){name}.*cannot be read"):
        load([name], None, "answer")


def test_functions_that_were_written_for_others(tmp_path):
    path = tmp_path / "theirs.py"
    path.write_text(OTHERS)
    answers = {"answer": ["a", "a"], "data_source": ["x", "y"]}
    assert built(f"verl:{path}:compute_score", "a", "b", **answers) == [2.0, 0.0]
    assert built(f"openrlhf:{path}:reward_func", "a", "b", **answers) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("exakt", "there is no reward 'exakt'"),
        ("nowhere.py:f", "there is no file nowhere.py"),
        ("no.such.module:f", "cannot be imported"),
        ("lenght:3", "did you mean: length"),
        ("json:f", "has no function"),
        ("format:(", "cannot be read"),
        ("length:x", "cannot be read"),
        ("tunesmith.demo.task:judge", r"\*\*kwargs"),
    ],
)
def test_what_cannot_be_found_is_an_error_before_any_weight(name, says):
    with pytest.raises(RecipeError, match=says):
        load([name], None, "answer")


def test_a_json_schema_says_what_is_allowed(tmp_path):
    pytest.importorskip("jsonschema")
    file = tmp_path / "schema.json"
    file.write_text('{"type": "object", "required": ["name"], "properties": {"age": {"type": "integer"}}}')
    (reward,) = load([f"json_schema:{file}"], None, "answer")
    said = ['{"name": "a"}', '{"age": 3}', '{"name": "a", "age": "x"}', "no json", '"name"']
    assert reward.function(completions=said) == [1.0, 0.0, 0.0, 0.0, 0.0]
    file.write_text('{"type": "nothing"}')
    with pytest.raises(RecipeError, match="cannot be read"):
        load([f"json_schema:{file}"], None, "answer")
    with pytest.raises(RecipeError, match="cannot be read"):
        load([f"json_schema:{tmp_path / 'none.json'}"], None, "answer")
