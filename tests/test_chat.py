from __future__ import annotations

import io
import json
import os
import signal

import pytest
from tiny_session import tiny_session

from tunesmith.chat import SETTINGS, Chat, run_chat
from tunesmith.data.types import Message
from tunesmith.models.session import Params

PARAMS = Params(max_new_tokens=8)


def chat_with(session=None, **more):
    out = io.StringIO()
    return Chat(session or tiny_session(adapters=["one", "two"]), PARAMS, out=out, **more), out


def said(out):
    text = out.getvalue()
    out.seek(0)
    out.truncate()
    return text


def alone(session, messages, adapter=None):
    made = session.generate([session.prompt_ids(messages)], PARAMS, adapters=[adapter])[0]
    return session.text(made, PARAMS)


def test_answers_are_streamed_and_remembered():
    chat, out = chat_with()
    chat.handle("hello")
    first = alone(chat.session, [Message("user", "hello")])
    assert said(out) == first + "\n"
    chat.handle("more")
    history = [Message("user", "hello"), Message("assistant", first), Message("user", "more")]
    assert said(out) == alone(chat.session, history) + "\n"
    assert [turn.role for turn in chat.history] == ["user", "assistant"] * 2
    chat.handle("/reset")
    said(out)
    chat.handle("hello")
    assert said(out) == first + "\n"


def test_the_adapter_answers_from_its_command_on():
    chat, out = chat_with()
    answers = []
    for name in ("none", "one", "two", "none"):
        chat.handle(f"/adapter {name}")
        chat.handle("/reset")
        said(out)
        chat.handle("who is it")
        answers.append(said(out))
    assert answers[0] == answers[3]
    assert len(set(answers)) == 3
    chat.handle("/adapter three")
    assert "no adapter is called 'three'; there are: one, two, none *" in said(out)
    chat.handle("/adapter two")
    said(out)
    chat.handle("/adapters")
    assert said(out) == "one, two *, none\n"


def test_compare_shows_both_answers_and_goes_on_with_the_adapters():
    chat, out = chat_with()
    chat.handle("/compare")
    assert "choose an adapter" in said(out)
    chat.handle("/adapter one")
    chat.handle("/compare")
    said(out)
    chat.handle("hi")
    question = [Message("user", "hi")]
    base, tuned = alone(chat.session, question), alone(chat.session, question, "one")
    assert base != tuned
    assert said(out) == f"[base] {base}\n[one] {tuned}\n"
    assert chat.history[-1].content == tuned
    chat.handle("/compare off")
    assert not chat.comparing


def test_on_a_terminal_the_two_stand_side_by_side_and_the_rate_is_shown():
    chat, out = chat_with(interactive=True)
    chat.handle("/adapter one")
    chat.handle("/compare on")
    chat.handle("hi")
    text = said(out)
    assert "tokens/s" in text
    assert any("base" in line and "one" in line for line in text.splitlines())
    assert "cut at max_new_tokens" in text


def test_system_text_comes_first_until_taken_back():
    chat, _ = chat_with()
    chat.handle("/system be short")
    chat.handle("hi")
    assert chat.session.renderer.seen[-1][0] == Message("system", "be short")
    chat.handle("/system")
    chat.handle("hi")
    assert chat.session.renderer.seen[-1][0].role == "user"


def test_set_changes_what_it_knows_and_nothing_else():
    chat, out = chat_with()
    for line in ("/set temperature=0.7", "/set top_p = 0.9", "/set top_k=5", "/set seed=3", "/set max_new_tokens=4"):
        chat.handle(line)
    assert chat.params == Params(4, 0.7, 0.9, 5, 3)
    chat.handle("/set top_k=none")
    assert chat.params.top_k is None
    said(out)
    before = chat.params
    for line in ("/set temperature=-1", "/set temperature=warm", "/set top_p=2", "/set max_new_tokens=0"):
        chat.handle(line)
        assert "stays: " in said(out)
    chat.handle("/set top_k=many")
    assert said(out) == "top_k stays: 'many' is no number for it\n"
    chat.handle("/set colour=red")
    assert "/set takes NAME=VALUE" in said(out)
    assert chat.params == before
    chat.handle("/set")
    assert all(name in said_text for said_text in [said(out)] for name in SETTINGS)


def test_save_appends_a_row_of_messages(tmp_path):
    chat, out = chat_with()
    chat.handle("/system be short")
    chat.handle(f"/save {tmp_path / 'chat.jsonl'}")
    assert "nothing to save yet" in said(out)
    assert not (tmp_path / "chat.jsonl").exists()
    chat.handle("hi")
    for _ in range(2):
        chat.handle(f"/save {tmp_path / 'chat.jsonl'}")
    rows = [json.loads(line) for line in (tmp_path / "chat.jsonl").read_text().splitlines()]
    assert rows[0] == rows[1]
    assert [turn["role"] for turn in rows[0]["messages"]] == ["system", "user", "assistant"]
    said(out)
    chat.handle(f"/save {tmp_path / 'no' / 'where.jsonl'}")
    assert "cannot be written" in said(out)


def test_help_lists_every_command_and_a_misspelt_one_is_said():
    chat, out = chat_with()
    chat.handle("/help")
    text = said(out)
    assert all(f"/{name}" in text for name in chat.commands)
    chat.handle("/adaptor one")
    assert "there is no command /adaptor" in said(out)
    assert chat.handle("/quit") is False
    assert chat.handle("") is True


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said():
    chat, out = chat_with()
    chat.params = Params(max_new_tokens=10_000)
    before = signal.getsignal(signal.SIGINT)
    count = 0
    original = chat.out.write

    def write(text):
        nonlocal count
        count += 1
        if count == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return original(text)

    chat.out.write = write
    chat.handle("hello")
    assert signal.getsignal(signal.SIGINT) is before
    assert 0 < len(chat.history[-1].content) < 20
    assert said(out) == chat.history[-1].content + "\n"
    chat.params = PARAMS
    assert chat.handle("and now")
    assert len(chat.history) == 4


@pytest.mark.parametrize("last", ["/quit\nnever asked\n", ""])
def test_a_pipe_gets_one_plain_answer_per_line(last):
    session, out = tiny_session(adapters=["one"]), io.StringIO()
    run_chat(session, params=PARAMS, adapter="one", source=io.StringIO(f"hello\n\nmore\n{last}"), out=out)
    first = alone(session, [Message("user", "hello")], "one")
    assert out.getvalue().startswith(first + "\n")
    assert len([turns for turns in session.renderer.seen if turns[-1].content in ("hello", "more")]) == 3
    assert not any(turns[-1].content == "never asked" for turns in session.renderer.seen)
