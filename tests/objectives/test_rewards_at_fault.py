"""Rewards that take too long or go wrong: the run ends in any case, and no row is blamed that is not at fault."""

from __future__ import annotations

import asyncio
import re
import statistics
import subprocess
import sys
import threading
import time

import pytest
from test_rewards import built, completions, of

from tunesmith.data.types import Origin
from tunesmith.errors import DataError, RecipeError
from tunesmith.objectives.rewards import Completion, Reward, Told, judge, load

BEGUN = """
import re, threading, time
from tunesmith.data.types import Origin
from tunesmith.objectives import plugins
from tunesmith.objectives.rewards import Completion, Reward, judge, load

plugins.GRACE_SECONDS = 0.5
asked = [Completion("q", "a" * 60 + "c", [1], {}, Origin("rows", 1))]


def backtracks(completions, **_):
    return [float(re.fullmatch("(a|aa)+b", text) is not None) for text in completions]


def judged(rewards):
    try:
        judge(rewards, asked, 0.5)
    except plugins.TimedOut as error:
        print(error, flush=True)
"""


def ran(code):
    """A process of its own: one that cannot be woken would take the tests with it."""
    begun = subprocess.run([sys.executable, "-c", BEGUN + code], capture_output=True, text=True, timeout=120)
    return begun.returncode, begun.stdout, begun.stderr


def test_a_process_that_cannot_be_woken_ends_and_says_where_it_stands():
    code, said, wrong = ran("judged([Reward('mine', backtracks, 1.0)])")
    assert (code, said) == (1, "")
    assert re.search(r"in backtracks\n", wrong)
    assert re.search(r"in judge\n", wrong)


def test_calls_that_are_left_in_time_end_no_process_and_a_form_ends_its_thread():
    code, said, wrong = ran("""
judged(load(["format:(a|aa)+b"], None, "answer"))
end = time.monotonic() + 30
while threading.active_count() > 1 and time.monotonic() < end:
    time.sleep(0.1)
print("threads", threading.active_count())
judged([Reward("mine", lambda completions, **_: time.sleep(30), 1.0)])
time.sleep(2)
print("alive")
""")
    assert (code, wrong) == (0, "")
    assert "rows, row 1: the reward format:(a|aa)+b did not answer within 0.5 s" in said
    assert "threads 1\n" in said
    assert "rows, row 1: the reward mine did not answer within 0.5 s" in said
    assert said.endswith("alive\n")


def test_a_call_that_was_left_and_then_takes_the_lock_ends_the_process_too():
    code, said, wrong = ran("""
def late(completions, **_):
    time.sleep(1)
    return backtracks(completions)

plugins.LEFT_SECONDS, plugins.BEAT_SECONDS = 2.0, 0.2
judged([Reward("mine", late, 1.0)])
time.sleep(60)
print("alive")
""")
    assert code == 1
    assert "did not answer within 0.5 s" in said
    assert "alive" not in said
    assert re.search(r"in backtracks\n", wrong)


@pytest.mark.parametrize("form", [r"\p{L}+", r"\X", "(?|a|b)", "[[:alpha:]]+", r"[\w--\d]+", "(a", "*"])
def test_a_form_that_python_does_not_read_is_refused(form):
    with pytest.raises(RecipeError, match="format"):
        load([f"format:{form}"], None, "answer")


def test_columns_of_any_name_go_past_what_is_built_in():
    rows = [Completion("q", "a", [1], {"self": 1, "pattern": 2}, Origin("rows", 1))]
    for name in ("format:a+", "length:1", "repetition", "json"):
        assert len(judge(load([name], None, "answer"), rows, 5.0)[0]) == 1


def test_a_call_that_hangs_blames_none_of_its_rows():
    rows = [Completion("q", "a", [1], {}, Origin("rows", row)) for row in (3, 3, 5, 5, 8, 8, 9, 9)]
    with pytest.raises(DataError, match="did not answer") as caught:
        judge(of(lambda completions, **_: time.sleep(5)), rows, 0.1)
    assert caught.value.where == "4 rows (rows, row 3; rows, row 5; rows, row 8; …)"


FORMS = [
    r"<think>.*?</think>\s*<answer>.*?</answer>",
    r"(?is)yes|no",
    r"\d{1,3}(?:,\d{3})*",
    r"a{,2}b{2,}c{3}",
    r"\\boxed{d}",
    r"\{\"a\": [0-9]+\}",
    r"x{}|y{1i}|[{e}]z\{e}",
    r"\N{BULLET} \w+",
    r"(?P<q>['\"]).*(?P=q)",
    r"(?:a|b)*+c",
    r"[^\W_]+",
]
TEXTS = [
    "<think>x\ny</think>\n<answer>4</answer>",
    "YES",
    "1,234,567",
    "aabbbccc",
    r"\boxed{d}",
    r"\boxed",
    '{"a": 12}',
    "x{}",
    "y{1i}",
    "y",
    "{z{e}",
    "ez{e}",
    "• größe",
    "'a\"'",
    "ababc",
    "",
]


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_what_python_reads(form):
    wanted = [float(re.fullmatch(form, text, re.DOTALL) is not None) for text in TEXTS]
    assert 0 < sum(wanted) < len(TEXTS)
    assert built(f"format:{form}", *TEXTS) == wanted


def test_json_that_is_nested_too_deeply_is_none(tmp_path):
    deep = ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000]
    assert built("json", *deep, "[]") == [0.0, 0.0, 0.0, 1.0]
    pytest.importorskip("jsonschema")
    file = tmp_path / "schema.json"
    file.write_text('{"$defs": {"list": {"items": {"$ref": "#/$defs/list"}}}, "$ref": "#/$defs/list"}')
    nested = "[" * 400 + "]" * 400  # is read, and not walked through
    assert built(f"json_schema:{file}", *deep, nested, "[[]]") == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_a_row_that_fails_alone_for_another_reason_is_not_blamed():
    asked = []

    def spread(completions, **_):
        asked.append(len(completions))
        if len(completions) > 2 and "bad" in completions:
            raise ValueError("row 9 is bad")
        return [statistics.stdev(map(len, completions))] * len(completions)

    with pytest.raises(DataError, match="mine failed: ValueError: row 9 is bad") as caught:
        judge(of(spread), completions("ok", "okk", "o", "bad"), 5)
    assert caught.value.where == "4 rows (rows, row 1; rows, row 2; rows, row 3; …)"
    assert asked == [4, 1, 1, 1, 1]


def test_where_all_have_lost_their_values_none_is_blamed():
    with pytest.raises(DataError, match="one value for each") as caught:
        judge(of(lambda completions, **_: [1.0]), completions("a", "b"), 5)
    assert caught.value.where == "2 rows (rows, row 1; rows, row 2)"


def test_a_call_that_raises_is_made_again_in_the_same_step_but_for_one_row_alone():
    steps = []

    def reward(completions, trainer_state, **_):
        steps.append(trainer_state.global_step)
        if "bad" in completions:
            raise ValueError("boo")
        return [0.0] * len(completions)

    with pytest.raises(DataError, match="boo") as caught:
        judge(of(reward), completions("ok", "bad"), 5, Told(7))
    assert (caught.value.where, steps) == ("rows, row 2", [7, 7, 7])
    steps.clear()
    with pytest.raises(DataError, match="boo") as caught:
        judge(of(reward), [Completion("q", text, [1], {}, Origin("rows", 4)) for text in ("ok", "bad")], 5)
    assert (caught.value.where, steps) == ("rows, row 4", [0])


def meeting(name, value, begun, other):
    """A coroutine function that answers once `other` has begun too."""

    async def reward(completions, log_metric, **_):
        begun.set()
        while not other.is_set():
            await asyncio.sleep(0.01)
        log_metric("last", value)
        return [value] * len(completions)

    return Reward(name, reward, 1.0)


def test_coroutine_functions_are_asked_at_the_same_time():
    one, other = threading.Event(), threading.Event()
    between = Reward("plain", lambda completions, **_: [2.0], 1.0)
    told = Told()
    rewards = [meeting("a", 1.0, one, other), between, meeting("b", 3.0, other, one)]
    assert judge(rewards, completions("x"), 20, told) == [[1.0], [2.0], [3.0]]
    assert told.metrics == {"last": 3.0}


def test_of_coroutine_functions_the_one_that_hangs_is_named():
    async def quick(completions, **_):
        return [0.0] * len(completions)

    async def hangs(completions, **_):
        time.sleep(5)

    rewards = [Reward("quick", quick, 1.0), Reward("hangs", hangs, 1.0), Reward("after", quick, 1.0)]
    with pytest.raises(DataError, match=r"the reward hangs did not answer within 0\.3 s"):
        judge(rewards, completions("x"), 0.3)
