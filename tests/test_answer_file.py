from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tiny_session import tiny_session

from tunesmith import answer_file as module
from tunesmith.answer_file import answer_file, read_prompts
from tunesmith.data.settings import DataSettings
from tunesmith.data.types import Message
from tunesmith.errors import DataError
from tunesmith.models.session import Params

PARAMS = Params(max_new_tokens=6)


def prompts_file(tmp_path, count=7):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question number {i}"}) + "\n" for i in range(count)))
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_come_in_the_files_order_and_equal_those_alone(tmp_path):
    session, out = tiny_session(adapters=["one"]), tmp_path / "deep" / "out.jsonl"
    prompts, progress = read_prompts(prompts_file(tmp_path)), []
    done = answer_file(
        session, prompts, out, PARAMS, adapter="one", max_rows=3, on_progress=lambda *at: progress.append(at)
    )
    assert (done.answered, done.already, done.cancelled) == (7, 0, False)
    assert progress == [(i + 1, 7) for i in range(7)]
    rows = rows_of(out)
    assert [row["row"] for row in rows] == list(range(1, 8))
    for row, prompt in zip(rows, prompts, strict=True):
        made = session.generate([session.prompt_ids(prompt.messages)], PARAMS, adapters=["one"])[0]
        assert row["answer"] == session.text(made, PARAMS)
        assert row["prompt"] == prompt.messages[-1].content


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kept", [0, 1, 4, 7])
def test_a_second_run_answers_what_is_missing_and_ends_the_same(tmp_path, temperature, kept, monkeypatch):
    monkeypatch.setattr(module, "PROMPTS_AT_A_TIME", 3)
    params = replace(PARAMS, temperature=temperature, seed=4)
    session, whole, cut = tiny_session(), tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    prompts = read_prompts(prompts_file(tmp_path))
    answer_file(session, prompts, whole, params)
    lines = whole.read_text().splitlines(keepends=True)
    # killed while it wrote: some whole lines in another order, and half of one more
    half = lines[kept][: len(lines[kept]) // 2] if kept < 7 else ""
    cut.write_text("".join(reversed(lines[:kept])) + half)
    done = answer_file(session, prompts, cut, params)
    assert (done.answered, done.already) == (7 - kept, kept)
    assert cut.read_bytes() == whole.read_bytes()


def test_cancelled_in_the_middle_it_goes_on_later(tmp_path):
    session, out = tiny_session(), tmp_path / "out.jsonl"
    prompts, calls = read_prompts(prompts_file(tmp_path)), []

    def cancelled():
        calls.append(1)
        return len(calls) > 8

    first = answer_file(session, prompts, out, PARAMS, max_rows=2, cancelled=cancelled)
    assert first.cancelled
    assert 0 < first.answered < 7
    assert len(rows_of(out)) == first.answered
    second = answer_file(session, prompts, out, PARAMS)
    assert (second.answered, second.already, second.cancelled) == (7 - first.answered, first.answered, False)


def test_answers_made_otherwise_are_not_mixed_in(tmp_path):
    session, out = tiny_session(adapters=["one"]), tmp_path / "out.jsonl"
    prompts = read_prompts(prompts_file(tmp_path))
    answer_file(session, prompts, out, PARAMS)
    before = out.read_bytes()
    for params, adapter in ((replace(PARAMS, max_new_tokens=7), None), (PARAMS, "one")):
        with pytest.raises(DataError, match="other settings"):
            answer_file(session, prompts, out, params, adapter=adapter)
    changed = [replace(prompts[0], messages=(Message("user", "another"),)), *prompts[1:]]
    with pytest.raises(DataError, match="rows 1\n"):
        answer_file(session, changed, out, PARAMS)
    assert out.read_bytes() == before


@pytest.mark.parametrize("content", ["not json\n", '{"row": 1}\n', "a note to keep", "[1]\n"])
def test_a_file_of_something_else_is_left_alone(tmp_path, content):
    out = tmp_path / "notes.txt"
    out.write_text(content)
    with pytest.raises(DataError, match="not written by generate"):
        answer_file(tiny_session(), read_prompts(prompts_file(tmp_path)), out, PARAMS)
    assert out.read_text() == content


def test_prompts_in_every_shape(tmp_path):
    text = tmp_path / "p.txt"
    text.write_text("first\n\nthird\n")
    assert [(p.row, p.messages[-1].content) for p in read_prompts(text)] == [(1, "first"), (3, "third")]
    text.write_bytes("one\u2028line\x85\x0c\r\nand another\r\n".encode())
    assert [p.messages[-1].content for p in read_prompts(text)] == ["one\u2028line\x85\x0c", "and another"]
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "gold"}]},
        {"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "q"}]},
        {"instruction": "do", "input": "this"},
        {"question": "why"},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [[(m.role, m.content) for m in prompt.messages] for prompt in read_prompts(path, system="brief")]
    assert found == [
        [("system", "brief"), ("user", "q")],
        [("system", "own"), ("user", "q")],
        [("system", "brief"), ("user", "do\n\nthis")],
        [("system", "brief"), ("user", "why")],
    ]


def test_rows_are_asked_as_the_run_read_its_own(tmp_path):
    """A question without its context, or without the system turn and history beside it, would be another question."""
    path = tmp_path / "p.jsonl"
    form = {"system": "Be short.", "prompt": "Context: {{ context }}\nQuestion: {{ question }}", "answer": "{{ x }}"}
    data = DataSettings.model_validate({"train": "t.jsonl", "format": form, "columns": {"context": "passage"}})

    def asked(row, **options):
        path.write_text(json.dumps(row) + "\n")
        return [(m.role, m.content) for m in read_prompts(path, **options)[0].messages]

    row = {"passage": "Foxes are brown.", "question": "Which colour?"}
    user = ("user", "Context: Foxes are brown.\nQuestion: Which colour?")
    assert asked(row, data=data) == [("system", "Be short."), user]
    assert asked(row, data=data, system="Be long.") == [("system", "Be long."), user]
    assert asked({"prompt": "as it is"}, data=data) == [("user", "as it is")]
    with pytest.raises(DataError, match="context"):
        asked({"question": "Which colour?"}, data=data)
    renamed = DataSettings(train="t.jsonl", columns={"prompt": "description", "completion": "mail"})
    assert asked({"description": "a clock", "text": "no"}, data=renamed) == [("user", "a clock")]
    row = {"instruction": "do", "input": "", "system": "own", "history": [["a", "b"]]}
    turns = [("system", "own"), ("user", "a"), ("assistant", "b"), ("user", "do")]
    assert asked(row, system="not this") == turns
    row = {"messages": [{"role": "user", "content": "q"}], "system": "own"}
    assert asked(row) == [("system", "own"), ("user", "q")]


def test_all_rows_without_a_prompt_are_named_at_once(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"promt": "b"}\n{"messages": [{"role": "assistant", "content": "x"}]}\n')
    with pytest.raises(DataError) as error:
        read_prompts(path)
    assert "row 2" in str(error.value)
    assert "row 3" in str(error.value)
    with pytest.raises(DataError, match="no such file"):
        read_prompts(tmp_path / "none.jsonl")
