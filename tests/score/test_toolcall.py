from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError
from tunesmith.score import SCORERS
from tunesmith.score.toolcall import Call, calls_match, parse_calls, same_value, tool_call

BFCL = Path(__file__).parents[3] / "shared/data/tools/bfcl_simple_python.jsonl"
TOOL = {
    "name": "math.area",
    "parameters": {
        "type": "dict",
        "properties": {
            "base": {"type": "integer"},
            "height": {"type": "float"},
            "unit": {"type": "string"},
        },
        "required": ["base", "height"],
    },
}
TRUTH = [{"math.area": {"base": [10], "height": [5.0], "unit": ["square units", ""]}}]
WANTED = Call("math.area", {"base": 10, "height": 5})


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "math.area", "arguments": {"base": 10, "height": 5}}</tool_call>',
        'Sure!\n<tool_call>\n{"name": "math.area", "arguments": {"base": 10, "height": 5}}\n</tool_call> Done.',
        '<tool_call>{"name": "math.area", "arguments": {"base": 10, "height": 5}}',
        '{"name": "math.area", "arguments": {"base": 10, "height": 5}}',
        '{"name": "math.area", "arguments": "{\\"base\\": 10, \\"height\\": 5}"}',
        '{"name": "math.area", "parameters": {"base": 10, "height": 5}}',
        '[{"name": "math.area", "arguments": {"base": 10, "height": 5}}]',
        '{"tool_calls": [{"type": "function", "function": {"name": "math.area", '
        '"arguments": {"base": 10, "height": 5}}}]}',
        '```json\n{"name": "math.area", "arguments": {"base": 10, "height": 5}}\n```',
        '[TOOL_CALLS] [{"name": "math.area", "arguments": {"base": 10, "height": 5}}]',
        "{'name': 'math.area', 'arguments': {'base': 10, 'height': 5}}",
        '{"math.area": {"base": 10, "height": 5}}',
        "math.area(base=10, height=5)",
        "[math.area(base=10, height=5)]",
        "```python\nmath.area(base=10, height=5)\n```",
        "I would call math.area(base=10, height=5) here.",
        "<|python_tag|>math.area(base=10, height=5)",
    ],
)
def test_every_notation_is_the_same_call(text):
    assert parse_calls(text) == [WANTED]
    assert tool_call(text, TRUTH, [TOOL]) == 1.0


@pytest.mark.parametrize("text", ["", "no call here", "{broken", "f(", "((((", "{}", "[]", "12", "a, b = 1", "\x00("])
def test_no_call_is_an_empty_list(text):
    assert parse_calls(text) == []


@given(st.text(max_size=80) | st.text(alphabet='{}[]()":,nametool_call<>/ \n', max_size=80))
def test_no_text_breaks_the_reader(text):
    assert isinstance(parse_calls(text), list)


def test_python_literals_and_names():
    calls = parse_calls('f(a=[1, 2], b={"k": None}, c=true, d=-1.5, e=today)')
    assert calls == [Call("f", {"a": [1, 2], "b": {"k": None}, "c": True, "d": -1.5, "e": "today"})]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("math.area(10, 5)", 1.0),
        ("math_area(10, height=5)", 1.0),
        ('math.area(10, 5, "Square Units")', 1.0),
        ('math.area(10, 5, "miles")', 0.0),
        ("math.area(10)", 0.0),
        ("math.area(10.0, 5)", 0.0),
        ('math.area("10", 5)', 0.0),
        ("math.area(True, 5)", 0.0),
        ("math.area(10, 5, colour='red')", 0.0),
        ("math.area(10, 5, base=10)", 0.0),
        ("math.perimeter(10, 5)", 0.0),
        ("[math.area(10, 5), math.area(10, 5)]", 0.0),
    ],
)
def test_match_by_the_leaderboards_rules(text, score):
    assert SCORERS["tool_call"](text, TRUTH, {"tools": [TOOL]}) == score


def test_several_calls_in_any_order_each_once():
    truth = [{"f": {"a": [1]}}, {"f": {"a": [2]}}]
    assert calls_match(parse_calls("[f(a=2), f(a=1)]"), truth, [])
    assert not calls_match(parse_calls("[f(a=2), f(a=2)]"), truth, [])


def test_values():
    assert same_value(5, 5.0)
    assert not same_value(1, True)
    assert not same_value("5", 5)
    assert same_value("New-York, NY", "new york ny")
    assert same_value([1, "A"], (1, "a"))
    assert same_value({"x": 1}, {"x": [1, 2], "y": ["", 3]})
    assert not same_value({"x": 3}, {"x": [1, 2]})
    assert not same_value({"x": 1, "z": 1}, {"x": [1]})
    assert same_value({"x": [1, 2]}, {"x": [1, 2]})


def test_plain_gold_calls_have_one_alternative():
    gold = [{"type": "function", "function": {"name": "f", "arguments": {"a": [1, 2]}}}]
    assert tool_call("f(a=[1, 2])", gold) == 1.0
    assert tool_call("f(a=1)", gold) == 0.0


def test_plain_gold_calls_are_compared_as_they_stand():
    gold = [{"name": "f", "arguments": {"a": {"y": [1, 2], "z": ""}, "b": ""}}]
    assert tool_call('f(a={"y": [1, 2], "z": ""}, b="")', gold) == 1.0
    assert tool_call('f(a={"y": 1, "z": ""}, b="")', gold) == 0.0
    assert tool_call('f(a={"y": [1, 2]}, b="")', gold) == 0.0
    assert tool_call('f(a={"y": [1, 2], "z": ""})', gold) == 0.0


def test_gold_calls_may_be_text_as_a_model_writes_it():
    gold = 'Sure. <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    assert tool_call("f(a=1)", gold) == 1.0
    assert tool_call("f(a=2)", gold) == 0.0
    assert tool_call("no call here", "nor here") == 1.0
    assert tool_call("f(a=1)", "no call is wanted") == 0.0
    assert tool_call("f()", [{"name": "f", "arguments": None}]) == 1.0
    assert tool_call("math.area(base=10, height=5)", "math.area(10, 5)", [TOOL]) == 1.0
    with pytest.raises(DataError, match="name its arguments"):
        tool_call("f(1)", "f(1)")


@pytest.mark.parametrize("gold", [None, 5, ["f"], [{}], [{"name": "f", "arguments": "{broken"}], [{"f": 5}]])
def test_gold_that_is_no_call_is_refused(gold):
    with pytest.raises(DataError, match="right answer"):
        tool_call("f(a=1)", gold)


def test_tools_come_as_text_or_with_holes():
    gold = [{"name": "f", "arguments": {"a": 1}}]
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    for tools in (
        json.dumps([tool]),
        [json.dumps(tool)],
        [{"type": "function", "function": None, **tool}],
        [{"function": {"name": "f", "parameters": {"properties": {"a": None}, "required": None}}}],
        [{"function": {"name": None}}, "{broken", None],
        "",
        None,
    ):
        assert SCORERS["tool_call"]("f(1)", gold, {"tools": tools}) == 1.0


@pytest.mark.skipif(not BFCL.exists(), reason="../shared/data is not here")
def test_every_leaderboard_row_is_matched_by_its_own_first_alternatives_and_by_no_other_rows():
    def flat(value):
        return (
            {k: flat(v[0]) if isinstance(v, list) and v else v for k, v in value.items()}
            if isinstance(value, dict)
            else value
        )

    rows = [json.loads(line) for line in BFCL.read_text().splitlines()]
    texts = []
    for row in rows:
        ((name, alternatives),) = row["ground_truth"][0].items()
        arguments = {k: flat(v[0]) for k, v in alternatives.items() if v[0] != ""}
        texts.append(f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>")
    right = [SCORERS["tool_call"](text, row["ground_truth"], row) for text, row in zip(texts, rows, strict=True)]
    # eight rows or fewer hold alternatives that are no value of the type they describe
    assert sum(right) >= len(rows) - 8
    shifted = [SCORERS["tool_call"](t, row["ground_truth"], row) for t, row in zip(texts[1:], rows, strict=False)]
    assert sum(shifted) <= 2
