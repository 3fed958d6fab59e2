"""What is odd about prepared rows is found, counted once, and named by its row."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import CHATML, HEADER_ENDS_IN_SPACE, LLAMA2, NEVER_ENDS, byte_level

from tunesmith.data.cache.laid import Table
from tunesmith.data.cache.laying import Laying
from tunesmith.data.check import findings as module
from tunesmith.data.check.findings import Finding, findings
from tunesmith.data.masking.answering import answers_of, learned_runs
from tunesmith.data.prepare import digest_of, prepare
from tunesmith.data.settings import DataSettings
from tunesmith.data.templating.templates import NAMED
from tunesmith.data.types import Judged, Preference, Prompt
from tunesmith.errors import DataError


def found(rows: list[dict[str, Any]], takes: Any = None, template: str = CHATML, **settings: Any) -> dict[str, Finding]:
    more = {} if takes is None else {"takes": takes}
    data = DataSettings(**{"train": "rows", **settings})
    made = prepare(data, byte_level(template), seed=0, rows=None if "train" in settings else rows, **more)
    return {finding.kind: finding for finding in findings(made)}


def pair(question: str, answer: str) -> dict[str, str]:
    return {"prompt": question, "completion": answer}


CLEAN = [pair(f"what is {i}", f"it is {i * i}") for i in range(8)]


def every_finding() -> dict[str, Finding]:
    """One of each kind."""
    kinds = found([*CLEAN, CLEAN[0], pair("what is it", "it is what it is " * 20)], max_length=40, overlong="truncate")
    kinds |= found([talk("a", " ", "b", "yes")])
    kinds |= found([{"text": "<s><s>the quick fox"}])
    kinds |= found([pair(f"what is {i % 4}", f"it is {i}") for i in range(40)], held_out=0.2)
    pairs = [{"prompt": f"what is {i}", "chosen": f"it is {i}" + " so" * (i % 5), "rejected": "no"} for i in range(20)]
    whole = {side: f"Human: what is it\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    return kinds | found([*pairs, whole], takes=(Preference,))


REMEDIES = {
    "endless": "raise data.max_length",
    "empty_answer": "take the row out",
    "doubled_bos": "take it out of the text",
    "duplicate": "take the copies out",
    "mixed_columns": "an entry of data.train of their own",
    "same_question": "data.held_out={key: COLUMN}",
    "length_bias": "objective.loss=sigmoid_norm",
}


def test_every_problem_comes_with_what_to_do_about_it() -> None:
    kinds = every_finding()
    assert set(kinds) == {*REMEDIES, "shared_prefix"}, "shared_prefix is a number to know, and no problem"
    for kind, remedy in REMEDIES.items():
        assert remedy in kinds[kind].text


def test_nothing_odd_is_found_in_clean_rows() -> None:
    assert found(CLEAN) == {}
    assert found([{"text": f"the quick brown fox {i}"} for i in range(4)]) == {}


def test_copies_are_counted_beyond_the_first_and_not_those_that_a_weight_makes() -> None:
    again = found([*CLEAN, CLEAN[2], CLEAN[2], CLEAN[5]])["duplicate"]
    assert (again.rows, again.first) == (3, ("rows, row 9", "rows, row 10", "rows, row 11"))
    assert "like an earlier one" in str(again)


def test_the_same_question_with_another_answer_is_no_copy() -> None:
    assert "duplicate" not in found([*CLEAN, pair("what is 2", "it is two")])


def test_a_held_out_question_that_training_asks_too() -> None:
    rows = [pair(f"what is {i % 4}", f"it is {i}") for i in range(40)]
    asked = found(rows, held_out=0.2)["same_question"]
    assert asked.rows == 8
    assert "same_question" not in found([pair(f"what is {i}", "it") for i in range(40)], held_out=0.2)


def test_an_answer_cut_before_its_end_does_not_teach_to_stop() -> None:
    rows = [*CLEAN, pair("what is it", "it is what it is " * 20)]
    cut = found(rows, max_length=40, overlong="truncate")["endless"]
    assert (cut.rows, cut.first) == (1, ("rows, row 9",))
    assert found(CLEAN, learn_ends="none")["endless"].rows == len(CLEAN)


def talk(*turns: str) -> dict[str, Any]:
    """Turns of user and assistant, one after the other."""
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]}


def test_the_end_of_every_learned_answer_counts_not_that_of_the_last_alone() -> None:
    rows = [talk("what is a", "it is b", "and c", "it is d", "and e", "it is f"), talk("what", "it is the fox")]
    assert "endless" not in found(rows)
    last = found(rows, learn_ends="last")["endless"]
    assert (last.rows, last.first) == (1, ("rows, row 1",))
    assert "2 of 4 answers" in last.text
    open_ended = found(rows, template=NEVER_ENDS)["endless"]
    assert "2 of 4 answers" in open_ended.text, "EOS is added behind the last answer alone"


@pytest.mark.parametrize("template", [CHATML, LLAMA2])
@pytest.mark.parametrize("learn", [("assistant", "user"), ("user",)])
def test_turns_of_others_need_no_end(template: str, learn: tuple[str, ...]) -> None:
    rows = [talk("what is a", "it is b", "and the fox"), talk("the quick fox", "jumps over", "the dog", "it is")]
    rows += [{"messages": [*talk("what")["messages"], {"role": "assistant", "content": "it"}, *CLOSING]}]
    assert "endless" not in found(rows, template=template, learn=learn)
    if learn != ("user",):
        cut = found([*rows, talk("what", "it is what it is " * 20)], learn=learn, max_length=40, overlong="truncate")
        assert cut["endless"].first == ("rows, row 4",)
        none = found(rows, template=template, learn=learn, learn_ends="none")["endless"]
        assert none.rows == len(rows)


def test_end_tokens_of_other_turns_are_no_empty_answers() -> None:
    rows = [talk("what is a", "it is b", "and the fox"), talk("what", "it is the fox")]
    for learn in ("answers", ("assistant", "user")):
        assert found(rows, learn=learn, learn_ends="all") == {}
    cut = found([*rows, talk("what", "it is what it is " * 20)], learn_ends="all", max_length=40, overlong="truncate")
    assert cut["endless"].first == ("rows, row 3",)


CLOSING = [{"role": "user", "content": "thanks"}, {"role": "user", "content": "bye"}]


def test_of_pieces_the_last_one_is_asked_for_its_end() -> None:
    def pieces(*texts: tuple[bool, str]) -> dict[str, Any]:
        return {"segments": [{"label": label, "text": text} for label, text in texts]}

    asked = (False, "what is it? ")
    rows = [pieces(asked, (True, "it is"), (False, " so "), (True, "it is the fox</s>")), pieces(asked, (True, "it"))]
    endless = found(rows)["endless"]
    assert endless.first == ("rows, row 2",)
    first = (True, "the quick fox, ")
    assert found([pieces(first, asked, (True, "it"))])["endless"].rows == 1, "a learned piece may come first"
    assert found([pieces(first, (True, "it is"))]) == {}, "plain text answers nothing"


def test_an_empty_answer_among_full_ones() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]
    turns += [{"role": "user", "content": "b"}, {"role": "assistant", "content": "yes"}]
    assert found([{"messages": turns}])["empty_answer"].rows == 1


ODD = [
    *(talk(f"what is {i}", f"it is {i}") for i in range(20)),
    *(talk("a", " ", "b", "yes"), talk("zebra", ""), talk("what is it", "it is what it is " * 40)),
]
PLAIN = NAMED["plain"].text
BESIDE = ["everything", "completions", ("assistant", "user"), ("system", "user", "assistant", "tool")]


@pytest.mark.parametrize("template", [CHATML, LLAMA2, HEADER_ENDS_IN_SPACE, NEVER_ENDS, PLAIN])
@pytest.mark.parametrize("learn", BESIDE)
def test_answers_are_asked_whatever_is_learned_beside_them(learn: Any, template: str) -> None:
    alone = found(ODD, template=template, max_length=60, overlong="truncate")
    beside = found(ODD, template=template, max_length=60, overlong="truncate", learn=learn)
    assert "rows, row 23" in alone["endless"].first
    assert beside["endless"] == alone["endless"]
    assert alone["empty_answer"].first == ("rows, row 21",), "a row that says nothing is left out, and counted"
    assert beside["empty_answer"].first == ("rows, row 21", "rows, row 22"), "here its question is learned"


@pytest.mark.parametrize("learn", BESIDE)
@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_questions_of_training_are_known_whatever_is_learned_beside_answers(learn: Any, template: str) -> None:
    rows = [talk(f"what is {i % 4}", f"it is {i}") for i in range(40)]
    assert found(rows, template=template, held_out=0.2, learn=learn)["same_question"].rows == 8


@pytest.mark.parametrize("learn", ["answers", "everything"])
@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_an_answer_that_the_row_begins_with_is_asked(learn: str, template: str) -> None:
    first = [{"role": "assistant", "content": " "}, *talk("what is it", "it is")["messages"]]
    kinds = found([{"messages": first}], template=template, learn=learn)
    assert set(kinds) == {"empty_answer"}


@pytest.mark.parametrize("learn", ["answers", "everything"])
def test_the_end_of_a_turn_that_is_learned_in_part_counts(learn: str) -> None:
    part = [{"start": 0, "end": 2, "learn": learn == "everything"}]
    rows = [{"messages": [*talk("what")["messages"], {"role": "assistant", "content": "it is", "learn_spans": part}]}]
    assert found(rows, learn=learn) == {}
    if learn == "answers":
        assert set(found(rows, learn_ends="none")) == {"endless"}


ONLY_THE_LAST = CHATML.replace("{% for m in messages %}", "{% for m in messages[-2:] %}")


def test_a_row_whose_template_hides_its_answers_is_learned_whole_all_the_same() -> None:
    rows = [talk("what is it", "it is", "and the fox", "it is the fox")]
    with pytest.raises(DataError, match="hides"):
        found(rows, template=ONLY_THE_LAST)
    assert found(rows, template=ONLY_THE_LAST, learn="everything") == {}


HELD_OUT = {
    "held_out_endless": (3, "raise data.max_length"),
    "held_out_empty_answer": (1, "take the row out"),
    "held_out_doubled_bos": (1, "take it out of the text"),
    "held_out_duplicate": (1, "take the copies out"),
}


def test_held_out_rows_are_looked_at_as_those_of_training(tmp_path: Path) -> None:
    cut = talk("z", "it is what it is " * 30)
    rows = [cut, cut, talk("what", "it is what it is " * 30), talk("a", " ", "b", "yes")]
    train, held_out, texts = (tmp_path / f"{name}.jsonl" for name in ("train", "held_out", "texts"))
    train.write_text("".join(json.dumps(talk(f"what is {i}", "it is")) + "\n" for i in range(5)))
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts.write_text(json.dumps({"text": "<s><s>the quick fox"}) + "\n")
    cut_off = {"max_length": 40, "overlong": "truncate"}
    kinds = found([], train=str(train), held_out=str(held_out), **cut_off)
    kinds |= found([], train=str(train), held_out=str(texts))
    assert set(kinds) == set(HELD_OUT), "training has nothing odd"
    for kind, (rows_of_kind, remedy) in HELD_OUT.items():
        assert kinds[kind].rows == rows_of_kind
        assert kinds[kind].text.startswith(f"held out: {rows_of_kind} row")
        assert remedy in kinds[kind].text


@pytest.mark.parametrize(("longer", "sign"), [("chosen", "+"), ("rejected", "-")])
def test_a_length_that_gives_the_better_answer_away(longer: str, sign: str) -> None:
    rows = []
    for i in range(20):
        answers = {"chosen": f"yes {i}", "rejected": f"no {i}"}
        answers[longer] += " it is what it is" * (1 + i % 3)
        rows.append({"prompt": f"what is {i}", **answers})
    kinds = found(rows, takes=(Preference,))
    assert sign in kinds["length_bias"].text
    assert kinds["shared_prefix"].rows == 20
    same = [{"prompt": f"what is {i}", "chosen": "it is a", "rejected": "it is b"} for i in range(20)]
    assert "length_bias" not in found(same, takes=(Preference,))


MIXED = [{"prompt": f"what is {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(5)]


def test_rows_of_one_source_that_fill_other_columns() -> None:
    whole = [{side: f"Human: what is {i}\n\nAssistant: {side}" for side in ("chosen", "rejected")} for i in range(2)]
    mixed = found([*MIXED, *whole], takes=(Preference,))["mixed_columns"]
    assert mixed.rows == 2
    assert mixed.first == ("rows, row 6", "rows, row 7")
    assert "5 chosen + prompt + rejected; 2 chosen + rejected" in mixed.text
    renamed = [{("asked" if name == "prompt" else name): value for name, value in row.items()} for row in MIXED]
    some = [{"asked": None, **row} for row in whole]
    assert "5 chosen + asked + rejected" in str(
        found([*renamed, *some], takes=(Preference,), columns={"prompt": "asked"})["mixed_columns"]
    )


def test_labels_that_some_rows_of_tokens_lack_are_found() -> None:
    rows: list[dict[str, Any]] = [{"input_ids": [9, 10, 11], "labels": [-100, -100, 11]}] * 3
    assert found([*rows, {"input_ids": [9, 10, 12]}])["mixed_columns"].rows == 1


@pytest.mark.parametrize(
    ("rows", "takes"),
    [
        ([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": "c", "input": "d", "system": "e"}], None),
        ([{"instruction": "a", "output": "b", "input": None}, {"instruction": "a", "output": "c", "input": ""}], None),
        ([{**talk("a", "b"), "tools": None}, {**talk("a", "c"), "tools": [], "source": "web"}], None),
        ([{**CLEAN[0], "id": 1}, CLEAN[1]], None),
        ([MIXED[0], {**MIXED[1], "score": 3, "system": "so"}], (Preference,)),
        ([{"prompt": "a", "answer": "b"}, {"prompt": "c", "tools": []}], (Prompt,)),
        ([{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "", "label": 0}], (Judged,)),
    ],
)
def test_columns_that_a_row_may_do_without_or_that_nobody_reads_are_no_finding(rows: Any, takes: Any) -> None:
    assert "mixed_columns" not in found([*rows, rows[0]], takes=takes)


def test_sources_may_differ_in_their_columns(tmp_path: Any) -> None:
    for name, rows in (("a", CLEAN), ("b", [talk("what", "it")])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"path": str(tmp_path / f"{name}.jsonl")} for name in "ab"]
    assert "mixed_columns" not in found([], train=sources)


@pytest.mark.parametrize("held_out", [None, 10])
def test_each_row_is_looked_at_once_and_remembered_by_sixteen_bytes(
    monkeypatch: pytest.MonkeyPatch, held_out: int | None
) -> None:
    rows = [pair(f"what is {i}", f"it is {i}") for i in range(40)]
    made = prepare(DataSettings(train="rows", held_out=held_out), byte_level(CHATML), seed=0, rows=rows)
    seen: list[Any] = []
    digests: list[bytes] = []
    monkeypatch.setattr(module, "answers_of", lambda example: seen.append(example) or answers_of(example))
    monkeypatch.setattr(module, "digest_of", lambda *parts: digests.append(digest_of(*parts)) or digests[-1])
    assert findings(made) == []
    assert len({id(example) for example in seen}) == len(seen) == 40
    assert {len(digest) for digest in digests} == {16}
    assert held_out is not None or len(digests) == 40, "questions are not remembered where nobody asks"


@pytest.mark.parametrize("takes", [None, (Preference,)])
def test_the_arrays_of_a_kept_row_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes: Any) -> None:
    side = {"chosen": "yes", "rejected": "no"}
    rows = [talk(*["what", "it"] * 8) if takes is None else {"prompt": "what", **side} for _ in range(4)]
    settings = DataSettings(train="rows", learn_ends="all" if takes is None else "turn")
    more = {} if takes is None else {"takes": takes}
    made = prepare(settings, byte_level(CHATML), seed=0, rows=rows, **more)
    with Laying(tmp_path) as laying:
        laying.add(made.train)
    kept = Table(tmp_path, laying.described()).examples()
    made_of: list[int] = []
    signed = Table.signed
    monkeypatch.setattr(Table, "signed", lambda table, place: made_of.append(place) or signed(table, place))
    assert findings(replace(made, train=kept)) == findings(made)
    assert all(count == 2 for count in Counter(made_of).values()), "its tokens, and its weights"


def test_learned_runs_are_where_the_weights_are() -> None:
    example = prepare(DataSettings(train="rows"), byte_level(CHATML), seed=0, rows=CLEAN).train[0]
    (run,) = learned_runs(example)
    assert example.loss_weights[run[0] : run[1]].all()
    assert not example.loss_weights[: run[0]].any()
    assert not example.loss_weights[run[1] :].any()
