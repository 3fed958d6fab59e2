"""What rows mean: each format, recognition by columns, and errors that name row and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.formats import FORMATS, LEARNABLE, convert, recognise
from tunesmith.data.reading.files import INDEX
from tunesmith.data.reading.sources import read
from tunesmith.data.settings import TemplateFormat
from tunesmith.data.types import Conversation, Document, Judged, Message, Origin, Preference, Prompt
from tunesmith.errors import DataError

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is absent")


def raw(*rows: dict) -> list:
    return [(Origin("file.jsonl", number), row) for number, row in enumerate(rows, start=1)]


def one(row: dict, format="auto", **columns):
    return convert(raw(row), format, columns).rows[0]


def turns(row) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in row.messages]


def test_text():
    assert one({"text": "hello"}) == Document("hello", Origin("file.jsonl", 1))


def test_prompt_and_completion_as_text_and_as_turns():
    assert turns(one({"prompt": "p", "completion": "c"})) == [("user", "p"), ("assistant", "c")]
    user, answer = {"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}
    row = one({"prompt": [user, answer, user], "completion": [answer]})
    assert [turn.is_learned for turn in row.messages] == [False, False, False, True]


def test_alpaca_with_and_without_input_system_and_history():
    assert turns(one({"instruction": "i", "input": "", "output": "o"})) == [("user", "i"), ("assistant", "o")]
    full = {"instruction": "i", "input": "x", "output": "o", "system": "s", "history": [["a", "b"]]}
    assert turns(one(full)) == [
        ("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "i\n\nx"), ("assistant", "o"),
    ]  # fmt: skip


def test_openai_messages_with_tools_and_calls():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    row = one(
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "go"}]},
                {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0},
                {"role": "tool", "content": "3", "tool_call_id": "c1"},
                {"role": "assistant", "content": "three", "reasoning_content": "hm"},
            ],
            "tools": [{"name": "f", "parameters": {"type": "object", "extra": None}}],
        }
    )
    assert row.messages[0] == Message("user", "go")
    assert row.messages[1].tool_calls[0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert [turn.is_learned for turn in row.messages] == [False, False, False, True]
    assert row.messages[2].tool_call_id == "c1"
    assert row.messages[3].reasoning == "hm"
    assert row.tools == ({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},)


def test_sharegpt_with_calls_joined_to_their_turn():
    call = json.dumps({"name": "f", "arguments": {"x": 1}})
    row = one(
        {
            "conversations": [
                {"from": "human", "value": "go"},
                {"from": "gpt", "value": "wait"},
                {"from": "function_call", "value": call},
                {"from": "function_call", "value": call},
                {"from": "observation", "value": "3"},
                {"from": "gpt", "value": "three"},
            ],
            "tools": "[]",
        }
    )
    assert turns(row) == [("user", "go"), ("assistant", "wait"), ("tool", "3"), ("assistant", "three")]
    assert len(row.messages[1].tool_calls) == 2


def test_a_template_over_columns():
    form = TemplateFormat(prompt="Q: {{ q }}", answer="{{ a[0] if a else 'none' }}", system="s")
    reading = convert(raw({"q": "x", "a": ["y"]}, {"q": "z", "a": []}), form, {})
    assert [turns(row) for row in reading.rows] == [
        [("system", "s"), ("user", "Q: x"), ("assistant", "y")],
        [("system", "s"), ("user", "Q: z"), ("assistant", "none")],
    ]


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("{{ missing }}", "row 1.*missing"),
        ("{{ q.__class__.__mro__ }}", "row 1"),
        ("{{ nothing }}", "null"),
        ("{{ nothing | trim }}", "null"),
        ("{{ nothing | upper }}", "null"),
        ("{{ [nothing] | join(', ') }}", "null"),
        ("{{ '%s' | format(nothing) }}", "null"),
        ("{{ 'Q: ' ~ nothing }}", "null"),
        ("{{ number }}", "NaN"),
        ("{{ number | string }}", "NaN"),
        ("{{ many }}", r"list.*\[0\], join or tojson"),
        ("{{ 'Q: ' ~ many }}", r"list.*\[0\], join or tojson"),
        ("{{ raw }}", "bytes"),
        ("{{ range }}", "range"),
        ("{{ q / 0 }}", "row 1"),
        ("{{ 'a' * 10 ** 15 }}", "row 1"),
        ("{{ 'a' * 1500000000 }}", "repeats 1 letters or items 1,500,000,000 times"),
        ("{{ 3 * ('ab' * 9000000) }}", "repeats"),
        ("{{ 10 ** (10 ** 9) }}", "too large"),
        ("{% set a = 'a' * 2 ** 23 %}{{ a }}{{ a }}{{ a }}", "letters, and"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "row 1"),
        ("{% for %}", r"data\.format\.prompt"),
    ],
)
def test_a_template_that_cannot_be_filled_names_row_and_column(prompt, says):
    row = {"q": "x", "nothing": None, "number": float("nan"), "many": ["a", "b"], "raw": b"x"}
    with pytest.raises(DataError, match=f"(?s){says}"):
        convert(raw(row), TemplateFormat(prompt=prompt, answer="a"), {})


def test_what_a_template_copies_of_a_row_may_be_of_any_length():
    text = "a" * (2**24 + 9)
    row = one({"text": text}, TemplateFormat(prompt="{{ 2 * 'x' }}{{ 2 ** 3 * 2.5 }}", answer="{{ text }}"))
    assert turns(row) == [("user", "xx20.0"), ("assistant", text)]


def test_a_template_may_ask_whether_a_column_is_null_and_write_lists_in_words():
    row = {"q": " x ", "nothing": None, "many": ["a", 2], "n": 3, "yes": True}
    prompt = "{{ q | trim ~ n }} {{ 'none' if nothing is none }}{{ nothing or '-' }} {{ nothing | default('d', true) }}"
    answer = "{{ many | join(', ') }} {{ many | tojson }} {{ many | length }} {{ yes }} {{ {'a': nothing} | tojson }}"
    assert turns(one(row, TemplateFormat(prompt=prompt, answer=answer))) == [
        ("user", "x3 none- d"), ("assistant", 'a, 2 ["a", 2] 2 True {"a": null}'),
    ]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_recognised_by_the_columns_it_needs(name):
    for needs in FORMATS[name].needs:
        assert recognise(raw(dict.fromkeys(needs, "x")), (FORMATS[name].makes,)) == name


def test_columns_that_are_null_in_most_rows_are_recognised_and_the_nulls_named():
    rows = raw(
        {"prompt": "a", "completion": None}, {"prompt": "a", "completion": None}, {"prompt": 3, "completion": "x"}
    )
    with pytest.raises(DataError) as caught:
        convert(rows, "auto", {})
    text = str(caught.value)
    assert "3 rows cannot be read as prompt-completion" in text
    assert "row 2: the column 'completion' is null" in text
    assert "expected: columns" not in text  # they are there
    with pytest.raises(DataError, match="expected: columns text"):
        convert(raw({"text": "a"}, {"txt": "b"}, {"text": "c"}), "auto", {})


def test_unknown_and_ambiguous_columns_list_candidates_and_columns():
    with pytest.raises(DataError, match=r"(?s)no format.*question, reply"):
        recognise(raw({"question": "q", "reply": "r"}))
    with pytest.raises(DataError, match=r"(?s)text.*alpaca"):
        recognise(raw({"text": "t", "instruction": "i", "output": "o"}))


WORDED = {
    "alpaca": {"instruction": "do it", "output": " done\n", "text": "### Instruction:\ndo it\n### Response:\ndone"},
    "prompt-completion": {"prompt": "a", "completion": "b", "text": "<u>a<b>b"},
    "input-output": {"input": "a", "output": "b", "text": "a b"},
    "messages": {
        "messages": [
            {"role": "user", "content": "q"},
            {"from": "gpt", "value": "r"},
            {"role": "tool", "content": None},
        ],
        "text": "q: r",
    },
}


@pytest.mark.parametrize("name", WORDED)
def test_a_text_that_only_words_the_other_columns_is_not_the_rows_meaning(name):
    row = WORDED[name]
    assert recognise(raw(row, row)) == name
    alone = {"text": "b", **dict.fromkeys(row.keys() - {"text"})}
    other = row | {"text": "something else"}
    for odd in (other, alone, row | {"text": 3}):
        with pytest.raises(DataError, match=rf"could be any of text, {name}"):
            recognise(raw(row, row, row, odd))
    assert recognise(raw(row, row, row | {"text": None})) == name


def test_beside_what_is_no_conversation_a_text_stays_ambiguous():
    with pytest.raises(DataError, match="could be any of text, segments"):
        recognise(raw({"text": "a", "segments": [{"label": True, "text": "a"}]}))


def test_a_text_without_the_input_of_its_row_says_something_else():
    row = WORDED["alpaca"] | {"input": "on this"}
    with pytest.raises(DataError, match="could be any of"):
        recognise(raw(row))
    assert convert(raw(row | {"text": row["text"] + row["input"]}), "auto", {}).notes == ("columns not used: text",)


def test_the_numbers_of_a_csv_s_rows_are_left_out_and_that_is_said():
    template = TemplateFormat(prompt="{{ prompt }}", answer="{{ completion }}")
    for form, makes in (("auto", Conversation), (template, Conversation), ("prompt", Prompt)):
        reading = convert(raw({INDEX: "0", "prompt": "a", "completion": "b"}), form, {}, (makes,))
        assert [note for note in reading.notes if "numbers the rows" in note]
        assert INDEX not in str(reading)
    assert convert(raw({INDEX: "0", "prompt": "a"}), "auto", {"completion": INDEX}).notes == ()


def test_columns_are_renamed_and_the_unused_are_told():
    reading = convert(raw({"q": "x", "a": "y", "id": 1}), "auto", {"prompt": "q", "completion": "a"})
    assert reading.format == "prompt-completion"
    assert any("id" in note for note in reading.notes)
    with pytest.raises(DataError, match=r"row 1.*nope"):
        convert(raw({"q": "x"}), "auto", {"prompt": "nope"})


def test_what_arrow_fills_with_null_is_not_there():
    call = {"id": None, "function": None, "name": "f", "arguments": {"x": 1}}
    row = one(
        {
            "messages": [
                {"role": "user", "content": "go", "tool_calls": None, "image": None},
                {"role": "assistant", "content": None, "tool_calls": [call], "image": None},
            ],
            "tools": [{"type": None, "function": None, "name": "f", "parameters": {"type": "object", "enum": None}}],
            "other": None,
        }
    )
    assert row.messages[1].tool_calls == ({"type": "function", "function": {"name": "f", "arguments": {"x": 1}}},)
    assert row.tools == ({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},)
    assert convert(raw({"text": "x", "other": None}), "auto", {}).notes == ()
    assert one({"messages": [{"role": "user", "content": "x"}], "tools": "null"}).tools == ()


def test_a_tools_reply_may_be_any_json_and_histories_may_be_json_text():
    reply = {"rain": [True, None], "city": "Zürich"}
    row = one({"messages": [{"role": "tool", "content": reply}, {"role": "tool", "content": [1, 2]}]})
    assert [json.loads(turn.content) for turn in row.messages] == [reply, [1, 2]]
    assert "Zürich" in row.messages[0].content
    row = one({"instruction": "i", "output": "o", "history": '[["a", "b"]]'})
    assert turns(row)[:2] == [("user", "a"), ("assistant", "b")]


def test_a_call_that_is_learned_does_not_join_a_turn_that_is_not():
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {}}', "weight": 1}
    row = one({"conversations": [{"from": "gpt", "value": "wait", "weight": 0}, call, {**call, "weight": 0}]})
    assert [turn.is_learned for turn in row.messages] == [False, True, False]


def test_keys_that_turns_hold_and_no_one_reads_are_told_for_every_format_of_turns():
    turn = {"role": "user", "content": "x", "mood": "glad"}
    answer = {"role": "assistant", "content": "y"}
    assert any("mood" in note for note in convert(raw({"messages": [turn]}), "auto", {}).notes)
    assert any("mood" in note for note in convert(raw({"prompt": [turn], "completion": [answer]}), "auto", {}).notes)


SYSTEM = [{"role": "system", "content": "a"}, {"role": "user", "content": "x"}]
BROKEN = [
    ("prompt-completion", {"prompt": "p", "completion": 1}, "'completion' must be text or a list of messages"),
    ("prompt-completion", {"prompt": {"a": 1}, "completion": []}, "'prompt' must be text or a list of messages"),
    ("alpaca", {"instruction": "i", "output": "o", "input": 0}, "'input' must be text"),
    ("alpaca", {"instruction": "i", "output": "o", "system": 0}, "'system' must be text"),
    ("alpaca", {"instruction": "i", "output": "o", "history": ["ab"]}, "pairs"),
    ("messages", {"messages": SYSTEM, "system": "b"}, "two system turns"),
    ("messages", {"messages": SYSTEM[1:], "conversations": SYSTEM}, "messages and conversations"),
    ("messages", {"messages": SYSTEM, "tools": [{"name": "f", "description": "\udc00"}]}, "UTF-16"),
    (
        "messages",
        {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": "\ud800"}}]}]},
        "UTF-16",
    ),
    (
        "messages",
        {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"x": 1, "x": 2}'}]}]},
        "stands twice",
    ),
    (
        "messages",
        {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"x": NaN}'}]}]},
        "NaN is not JSON",
    ),
    ("text", {"text": None}, "null"),
    ("text", {"text": 3}, "must be text"),
    ("text", {"text": "\ud800"}, "UTF-16"),
    ("alpaca", {"instruction": "i"}, "'output' is missing"),
    ("alpaca", {"instruction": "i", "output": "o", "history": [["a"]]}, "history"),
    ("prompt-completion", {"prompt": "p", "completion": []}, "both"),
    ("messages", {"messages": 3}, "list"),
    ("messages", {"messages": [{"content": "x"}]}, "no 'role'"),
    ("messages", {"messages": [{"role": "wizard", "content": "x"}]}, "wizard"),
    ("messages", {"messages": [{"role": "user"}]}, "no content"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "not text"),
    ("messages", {"messages": [{"role": "assistant", "tool_calls": [{"x": 1}]}]}, "function name"),
    ("messages", {"messages": [{"from": "function_call", "value": "{oops"}]}, "not JSON"),
    ("messages", {"messages": [], "tools": "{oops"}, "tools"),
]


@pytest.mark.parametrize(("name", "row", "says"), BROKEN)
def test_broken_rows_name_file_row_and_key(name, row, says):
    with pytest.raises(DataError, match=says) as caught:
        convert(raw(row), name, {})
    assert "file.jsonl, row 1" in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "from", "content", "value", "tool_calls", "name", "weight", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)
ANYTHING = (Conversation, Document, Preference, Judged)
KEYS = sorted(frozenset().union(*(kind.reads for kind in FORMATS.values())))


@settings(deadline=None, max_examples=300)
@given(
    row=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5),
    name=st.sampled_from(["auto", *FORMATS, TemplateFormat(prompt="{{ text }}", answer="{{ output[0].x }}")]),
)
def test_no_row_gives_anything_but_a_meaning_or_a_data_error(row, name):
    try:
        rows = convert(raw(row), name, {}, ANYTHING).rows
    except DataError as error:
        told = str(error)
        rows = []
    assert isinstance(rows[0], ANYTHING) if rows else "file.jsonl" in told


@needs_data
@pytest.mark.parametrize(
    ("path", "name", "count"),
    [
        ("instruct/alpaca_en.json", "alpaca", 999),
        ("instruct/identity.json", "alpaca", 91),
        ("tools/glaive_toolcall_en.json", "messages", 300),
        ("preference/kto_en.json", "unpaired", 300),
    ],
)
def test_real_files_are_recognised(path, name, count):
    reading = convert(read(DATA / path), "auto", {}, (Judged,) if name == "unpaired" else LEARNABLE)
    assert (reading.format, len(reading.rows)) == (name, count)
