"""The system turn and the tools of a row are read beside every kind of turns, by either name."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.data.formats import FORMATS, convert
from tunesmith.data.rows.beside import SYSTEMS, TOOLS
from tunesmith.data.types import Conversation, Judged, Labelled, Origin, Preference, Prompt, Row
from tunesmith.errors import DataError

ASKED = [{"role": "user", "content": "q"}]
ANSWER = [{"role": "assistant", "content": "a"}]
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "messages": ("messages", {"messages": ASKED + ANSWER}),
    "conversations": ("messages", {"conversations": [{"from": "human", "value": "q"}]}),
    "prompt-completion": ("prompt-completion", {"prompt": "q", "completion": "a"}),
    "of turns": ("prompt-completion", {"prompt": ASKED, "completion": ANSWER}),
    "alpaca": ("alpaca", {"instruction": "q", "input": "x", "output": "a", "history": [["b", "c"]]}),
    "input-output": ("input-output", {"input": "q", "output": "a"}),
    "question-answer": ("question-answer", {"question": "q", "answer": "a"}),
    "multiple-choice": ("multiple-choice", {"question": "q", "choices": ["x"], "solution": "a"}),
    "unanswerable": ("unanswerable", {"article": "x", "unanswerable_question": "q"}),
    "preference": ("preference", {"prompt": "q", "chosen": "a", "rejected": "b"}),
    "unpaired": ("unpaired", {"prompt": "q", "completion": "a", "label": True}),
    "labelled": ("labelled", {"messages": ASKED, "label": "x"}),
}
CALLED = [{"name": "f", "parameters": {"type": "object"}}]
TELLS_TOOLS = [name for name in ROWS if "tools" in FORMATS[ROWS[name][0]].reads]


def read(row: dict[str, Any]) -> Any:
    makes = Judged if row.get("label") is True else Labelled if "label" in row else Conversation
    makes = Preference if "chosen" in row else makes
    return convert([(Origin("rows", 1), row)], "auto", {}, (makes,))


def turns(row: Row) -> list[tuple[str, str, bool]]:
    row = row.text if isinstance(row, Labelled) else row
    if isinstance(row, Preference | Judged):
        return [(turn.role, turn.content, False) for turn in row.prompt]
    return [(turn.role, turn.content, turn.is_learned) for turn in row.messages]  # type: ignore[union-attr]


def tools(row: Row) -> Any:
    return (row.text if isinstance(row, Labelled) else row).tools  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_turn_stands_before_the_turns_and_changes_nothing_else(name: str, system: str) -> None:
    form, row = ROWS[name]
    with_it, without = read({**row, system: "s"}), read(row)
    assert (with_it.format, with_it.notes) == (form, ())
    assert turns(with_it.rows[0]) == [("system", "s", False), *turns(without.rows[0])]
    assert turns(read({**row, system: ""}).rows[0]) == turns(without.rows[0])


@pytest.mark.parametrize("name", ROWS)
def test_two_system_turns_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"(?s)both system and system_prompt.*system_prompt: null"):
        read({**ROWS[name][1], "system": "s", "system_prompt": "t"})


@pytest.mark.parametrize("name", TELLS_TOOLS)
@pytest.mark.parametrize("column", TOOLS)
def test_tools_are_read_under_either_word(name: str, column: str) -> None:
    made = read({**ROWS[name][1], column: CALLED})
    assert made.notes == ()
    assert [tool["function"]["name"] for tool in tools(made.rows[0])] == ["f"]


def test_openai_s_older_words_for_calls_are_read_whole() -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}}
    row = read({"messages": [*ASKED, call], "functions": CALLED}).rows[0]
    assert row.messages[1].tool_calls[0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert row.tools[0]["function"]["name"] == "f"


def test_functions_that_are_no_tools_or_others_than_the_tools_are_named() -> None:
    row = {"messages": ASKED + ANSWER}
    with pytest.raises(DataError, match=r"(?s)'functions' is read as 'tools'.*functions: null"):
        read({**row, "functions": ["sin", "cos"]})
    with pytest.raises(DataError, match="both tools and functions"):
        read({**row, "functions": CALLED, "tools": [{"name": "g"}]})
    for tools_there in (CALLED, [], "", None):
        assert len(read({**row, "functions": CALLED, "tools": tools_there}).rows[0].tools) == 1


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_column_against_the_first_turn_is_named_and_its_text_is_cut_short(system: str) -> None:
    row = {"messages": [{"role": "system", "content": "in turn " * 500}, *ASKED, *ANSWER], system: "aside " * 500}
    with pytest.raises(DataError, match="two system turns") as caught:
        read(row)
    told = str(caught.value)
    assert f"data.columns={{{system}: null}}" in told
    assert "aside aside" in told
    assert "in turn in turn" in told
    assert len(told) < 500
    unread = convert([(Origin("rows", 1), row)], "auto", {system: None}, (Conversation,))
    assert turns(unread.rows[0])[0] == ("system", "in turn " * 500, False)


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"prompt": "q"}, []),
        ({"question": "q"}, []),
        ({"messages": ASKED}, ["f"]),
        ({"conversations": [{"from": "human", "value": "q"}]}, ["f"]),
    ],
)
def test_what_stands_beside_a_prompt_is_the_rewards_and_functions_are_tools_beside_turns(
    row: dict[str, Any], names: list[str]
) -> None:
    beside = {"system": "s", "system_prompt": "t", "functions": CALLED}
    (made,) = convert([(Origin("rows", 1), {**row, **beside})], "auto", {}, (Prompt,)).rows
    assert isinstance(made, Prompt)
    assert [(turn.role, turn.content) for turn in made.messages] == [("user", "q")]
    assert [tool["function"]["name"] for tool in made.tools] == names
    assert made.columns == beside
