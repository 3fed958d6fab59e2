from __future__ import annotations

import json

import pytest
from tiny_session import tiny_session

from tunesmith.data.types import Conversation, Message, Origin
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluate import Item, before_after, evaluate, item_of, mean_of, write_answers
from tunesmith.evaluate import items_of as every_answer
from tunesmith.models.session import Params

PARAMS = Params(max_new_tokens=6)
ORIGIN = Origin("rows.jsonl", 3)


def items_of(count, gold="x", part=None):
    return [Item((Message("user", f"question {i}"),), gold, part=part) for i in range(count)]


def test_every_answer_is_scored_by_every_scorer_in_the_items_order():
    session = tiny_session(adapters=["one"])
    items = items_of(5)
    seen, progress = [], []

    def length(prediction, gold, row):
        seen.append(prediction)
        return len(prediction) / 10

    found = evaluate(
        session,
        items,
        {"length": length, "none": lambda *_: 0.0},
        params=PARAMS,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    alone = [evaluate(session, [item], {"none": lambda *_: 0.0}, params=PARAMS).answers[0] for item in items]
    assert found.answers == alone
    assert seen == [answer.text for answer in alone]
    assert found.scores == {"length": [len(text) / 10 for text in seen], "none": [0.0] * 5}
    assert progress == [(i + 1, 5) for i in range(5)]
    assert found.mean("none").value == 0.0
    assert found.num_cut == sum(answer.finish_reason == "length" for answer in alone)


def test_parts_are_reported_apart():
    session = tiny_session()
    items = items_of(3, [], "unanswerable") + items_of(2, ["x"], "answerable")
    found = evaluate(session, items, {"has gold": lambda _, gold, __: float(bool(gold))}, params=PARAMS)
    by_part = found.by_part()
    assert {name: (mean.value, mean.count) for name, mean in by_part.items()} == {
        "unanswerable": (0.0, 3),
        "answerable": (1.0, 2),
    }
    assert found.mean().value == pytest.approx(2 / 5)


def test_before_and_after_are_paired_on_the_same_items():
    session = tiny_session(adapters=["one"])
    items = items_of(6)
    answers = {}

    def score(prediction, gold, row):
        return float(prediction in answers.get("after", []))

    after = evaluate(session, items, {"s": score}, adapter="one", params=PARAMS)
    answers["after"] = [answer.text for answer in after.answers]
    both = before_after(session, items, {"s": score}, adapter="one", params=PARAMS)
    assert both.after.scores["s"] == [1.0] * 6
    change = both.change()
    assert change.difference == 1.0 - both.before.mean().value
    assert change.gained == 6 - sum(both.before.scores["s"])
    assert change.lost == 0


def test_intervals_hold_the_mean():
    for values in ([0.0, 1.0, 1.0], [0.2, 0.5, 0.9, 0.4], [1.0] * 4):
        mean = mean_of(values)
        assert mean.low <= mean.value <= mean.high
        assert mean.value == pytest.approx(sum(values) / len(values))
    assert mean_of([1.0] * 4).low < 1.0
    assert "of 3" in str(mean_of([0.0, 1.0, 1.0]))


def test_the_last_answer_of_a_conversation_is_the_gold_one():
    turns = (Message("user", "q"), Message("assistant", "a"), Message("user", "r"), Message("assistant", "b"))
    item = item_of(Conversation(turns, ORIGIN), {"is_impossible": True})
    assert item.messages == turns[:3]
    assert item.gold == "b"
    assert item.part == "unanswerable"
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    tools = ({"type": "function", "function": {"name": "f"}},)
    called = item_of(Conversation((turns[0], Message("assistant", "", tool_calls=(call,))), ORIGIN, tools))
    assert called.gold == [call]
    assert called.row["tools"] == list(tools)
    assert item_of(Conversation(turns[:3], ORIGIN), gold=["b"]).gold == ["b"]
    with pytest.raises(DataError, match=r"rows\.jsonl, row 3"):
        item_of(Conversation(turns[:3], ORIGIN))


def test_an_unknown_scorer_is_refused_with_those_there_are():
    with pytest.raises(RecipeError, match="exact"):
        evaluate(tiny_session(), items_of(1), "exactt")


def test_answers_are_written_one_a_line(tmp_path):
    session = tiny_session()
    items = items_of(3, part="answerable")
    found = evaluate(session, items, ["exact", "f1"], params=PARAMS)
    write_answers(tmp_path / "deep" / "answers.jsonl", items, found)
    rows = [json.loads(line) for line in (tmp_path / "deep" / "answers.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == [1, 2, 3]
    assert [row["answer"] for row in rows] == [answer.text for answer in found.answers]
    assert rows[0].keys() >= {"question", "gold", "scores", "part", "finish_reason"}
    assert rows[0]["scores"].keys() == {"exact", "f1"}


def test_every_answer_of_a_conversation_is_asked_for_after_the_true_turns():
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    said = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", ""), ("tool", "t"), ("assistant", " ")]
    said += [("user", "s"), ("assistant", "b"), ("user", "u")]
    turns = tuple(
        Message(role, text, tool_calls=(call,) if role == "assistant" and not text else ()) for role, text in said
    )
    found = every_answer(Conversation(turns, ORIGIN), {"is_impossible": False}, 4)
    assert [item.messages for item in found] == [turns[:1], turns[:3], turns[:7]]
    assert [item.gold for item in found] == ["a", [call], "b"]
    assert [(item.conversation, item.turn, item.part) for item in found] == [(4, n, "answerable") for n in (1, 2, 3)]
    assert every_answer(Conversation(turns[:1], ORIGIN), {}, 1) == []


def test_turns_of_one_conversation_are_not_counted_as_independent():
    """Ten conversations of ten like turns know what ten answers know, and not what a hundred do."""
    values = [float(i < 5) for i in range(10) for _ in range(10)]
    conversations = [i for i in range(10) for _ in range(10)]
    alone, together = mean_of(values), mean_of(values, conversations)
    assert together.value == alone.value == 0.5
    assert together.count == 100
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert together.low > 0.1
    few = mean_of([1.0] * 100, conversations)
    assert few.low == pytest.approx(mean_of([1.0] * 10).low)
    assert mean_of(values, list(range(100))) == alone


def test_answers_of_a_conversation_are_written_with_its_row_and_their_turn(tmp_path):
    turns = (Message("user", "q"), Message("assistant", "a"), Message("user", "r"), Message("assistant", "b"))
    items = [item for n in (1, 2) for item in every_answer(Conversation(turns, ORIGIN), {}, n)]
    found = evaluate(tiny_session(), items, ["exact", "f1"], params=PARAMS)
    assert found.conversations == [1, 1, 2, 2]
    write_answers(tmp_path / "answers.jsonl", items, found)
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(row["row"], row["turn"], row["gold"]) for row in rows] == [
        (1, 1, "a"),
        (1, 2, "b"),
        (2, 1, "a"),
        (2, 2, "b"),
    ]
