"""Questions and answers under the names that data sets give them: each form is known by its columns, or asked about."""

from __future__ import annotations

from typing import Any

import pytest
from every_kind import TOKENIZER

from tunesmith.data.cache import large
from tunesmith.data.formats import LEARNABLE, convert, recognise
from tunesmith.data.prepare import prepare
from tunesmith.data.rows.question_rows import QUESTIONS, UNCLEAR, UNKNOWN
from tunesmith.data.settings import DataSettings, TemplateFormat
from tunesmith.data.types import Labelled, Origin, Preference, Prompt, turns_of
from tunesmith.errors import DataError
from tunesmith.notation import read_scalar

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
FORMS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "load_qa": ("question-answer", {"question": "q", "answer": "a"}, ["q", "a"]),
    "load_concise": ("question-answer", {"instruction": "q", "input": "", "response": "a"}, ["q", "a"]),
    "gpteacher": ("question-answer", {"instruction": "q", "input": "x", "response": "a"}, ["q\n\nx", "a"]),
    "dolly": ("question-answer", {"instruction": "q", "context": "x", "response": "a"}, ["q\n\nx", "a"]),
    "camel_ai": ("question-answer", {"message_1": "q", "message_2": "a"}, ["q", "a"]),
    "open_orca": ("question-answer", {"system_prompt": "s", "question": "q", "response": "a"}, ["s", "q", "a"]),
    "open_orca, no system": ("question-answer", {"system_prompt": "", "question": "q", "response": "a"}, ["q", "a"]),
    "oasst": ("question-answer", {"INSTRUCTION": "q", "RESPONSE": "a"}, ["q", "a"]),
    "summarizetldr": ("question-answer", {"article": "q", "summary": "a"}, ["q", "a"]),
    "context_qa": ("question-answer", {"article": "x", "question": "q", "answer": "a"}, ["x\n\nq", "a"]),
    "load_v2": ("question-answer", {"context": "x", "question": "q", "answer": "a"}, ["x\n\nq", "a"]),
    "load_404": ("unanswerable", {"article": "x", "unanswerable_question": "q"}, ["x\n\nq", UNKNOWN]),
    "metharme": ("question-answer", {"prompt": "q", "generation": "a"}, ["q", "a"]),
    "prompt, response": ("question-answer", {"prompt": "q", "response": "a"}, ["q", "a"]),
    "query": ("question-answer", {"query": "q", "response": "a"}, ["q", "a"]),
    "creative_acr, no critique": ("question-answer", {"instruction": "q", "answer": "a"}, ["q", "a"]),
    "concisechoice": (
        "multiple-choice", {"question": "q", "choices": ["x", "y"], "solution": "a"}, ["q\n- x\n- y", "a"]
    ),
    "explainchoice": (
        "multiple-choice", {"question": "q", "choices": '["x", "y"]', "explanation": "a"}, ["q\n- x\n- y", "a"]
    ),
    "alpaca": ("alpaca", {"instruction": "q", "input": "x", "output": "a"}, ["q\n\nx", "a"]),
    "messages beside them": (
        "messages",
        {"question": "x", "answer": "y", "messages": [{"role": "user", "content": "q"}]},
        ["q"],
    ),
}  # fmt: skip


def read(row: dict[str, Any], takes: Any = LEARNABLE, form: Any = "auto", **columns: Any) -> Any:
    return convert([(Origin("rows", 1), row)], form, columns, takes)


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_known_by_its_columns_and_every_text_of_it_is_read(name: str) -> None:
    form, row, said = FORMS[name]
    made = read({**row, "id": 7})
    assert made.format == form == of_rows_that_are_not_kept(row)
    assert [turn.content for turn in made.rows[0].messages] == said
    assert made.rows[0].messages[-1].is_learned is (name != "messages beside them")
    assert made.notes == ("columns not used: " + ("question, answer, id" if form == "messages" else "id"),)


def unclear(what: str) -> dict[str, Any]:
    return {
        name: ["x", "y"] if name in ("choices", "options") else f"the {name}" for name in sorted(UNCLEAR[what].names)
    }


@pytest.mark.parametrize("what", UNCLEAR)
def test_what_could_be_several_things_is_asked_about_and_every_candidate_can_be_said(what: str) -> None:
    row = unclear(what)
    with pytest.raises(DataError, match="several ways") as caught:
        read(row)
    meanings = set()
    for way in UNCLEAR[what].ways:
        assert way in str(caught.value)
        form = read_scalar(way)
        form = TemplateFormat(**form) if isinstance(form, dict) else form
        meanings.add(tuple((turn.role, turn.content) for turn in turns_of(read(row, form=form).rows[0])))
    assert len(meanings) == len(UNCLEAR[what].ways)
    with pytest.raises(DataError, match="several ways"):
        of_rows_that_are_not_kept(row)


@pytest.mark.parametrize(
    ("row", "takes", "form"),
    [
        ({"prompt": "p", "completion": "c", "text": "pc"}, LEARNABLE, "prompt-completion"),
        ({"prompt": "p", "text": None, "completion": "c"}, LEARNABLE, "prompt-completion"),
        ({"prompt": "p", "text": "t", "label": "x"}, (Labelled,), "labelled"),
        ({"category": "c", "question": "q", "answer": "a", "messages": TURNS}, LEARNABLE, "messages"),
        ({"prompt": "p", "text": "t"}, (Prompt,), "prompt"),
    ],
)
def test_columns_that_another_format_reads_whole_are_not_asked_about(row: Any, takes: Any, form: str) -> None:
    assert read(row, takes).format == form


@pytest.mark.parametrize("other", ["rejected", "rejected_response"])
@pytest.mark.parametrize("asked", ["prompt", "query", "question", "instruction"])
def test_an_answer_beside_a_rejected_one_is_a_pair(asked: str, other: str) -> None:
    row = {asked: "q", "response": "good", other: "bad"}
    made = read(row, (Preference,))
    (pair,) = made.rows
    said = [turns[0].content for turns in (pair.prompt, pair.chosen, pair.rejected)]
    assert (made.format, made.notes, said) == ("preference", (), ["q", "good", "bad"])
    with pytest.raises(DataError, match=r"(?s)these rows are pairs.*data\.format=question-answer"):
        read(row)
    assert read(row, form="question-answer").rows[0].messages[-1].content == "good"
    beside = read({**row, "chosen": "best", "rejected": "worst"}, (Preference,))
    assert beside.rows[0].chosen[0].content == "best"
    assert "response" in beside.notes[0]


def of_rows_that_are_not_kept(row: dict[str, Any]) -> str:
    """The format of rows of which only the columns are remembered."""
    survey = large.Survey(DataSettings(train="rows"))
    survey.look([(Origin("rows", number), row) for number in range(3)])
    return survey.recognised(large.Task.of(survey.settings, 0, None, None, LEARNABLE))


def test_two_answers_or_two_contexts_are_refused_by_row_and_one_can_be_left_unread() -> None:
    row = {"question": "q", "answer": "a", "response": "b"}
    with pytest.raises(DataError, match=r"(?s)row 1.*question and answer; question and response.*response: null"):
        read(row)
    assert read(row, response=None).rows[0].messages[-1].content == "a"
    with pytest.raises(DataError, match=r"(?s)row 1.*both context and article.*article: null"):
        read({"question": "q", "answer": "a", "context": "x", "article": "y"})
    with pytest.raises(DataError, match="both solution and explanation"):
        read(unclear("a choice with its solution and its explanation"), form="multiple-choice")


def test_rows_that_reward_each_step_are_refused_with_what_is_learned_instead() -> None:
    with pytest.raises(DataError, match=r"(?s)no format.*each step.*objective\.loss=kto"):
        read({"prompt": "q", "completions": ["a", "b"], "labels": [True, False]})


def test_columns_that_could_be_a_question_and_are_not_looked_at_are_told() -> None:
    row = {"question": "q", "answer": "a", "query": "x", "summary": "y", "article": "", "message_1": None}
    assert read(row).notes == ("columns not used: query, summary",)


def test_forms_of_which_two_have_their_columns_are_candidates() -> None:
    row = {"article": "x", "question": "q", "answer": "a", "unanswerable_question": "w"}
    with pytest.raises(DataError, match="any of question-answer, unanswerable"):
        read(row)
    with pytest.raises(DataError, match="any of prompt-completion, question-answer"):
        read({"prompt": "q", "completion": "a", "response": "b"})


@pytest.mark.parametrize(("asked", "answer"), QUESTIONS)
def test_a_question_with_its_answer_stays_a_prompt_where_prompts_are_learned_from(asked: str, answer: str) -> None:
    row = {asked: "q", answer: "a"}
    assert recognise([(Origin("rows", 1), row)]) == "question-answer"
    if asked in ("prompt", "question"):
        assert recognise([(Origin("rows", 1), row)], (Prompt,), LEARNABLE) == "prompt"
    with pytest.raises(DataError, match="these rows are conversations"):
        read(row, (Preference,))


def test_contexts_that_some_rows_lack_are_no_finding() -> None:
    rows = [{"question": "q", "answer": "a b c"}, {"question": "w", "answer": "a b c", "context": "x"}]
    assert prepare(DataSettings(train="rows"), TOKENIZER, seed=0, rows=rows).shapes == {}


RANKED = [{"answer": "so", "rank": 2.0}, {"answer": "bad", "rank": 3.0}, {"answer": "good", "rank": 1.0}]


def test_of_ranked_answers_the_best_is_chosen_and_the_worst_rejected() -> None:
    for prompt in ("q", "\n\nHuman: q\n\nAssistant: "):
        made = read({"prompt": prompt, "answers": RANKED, "turns": 1}, (Preference,))
        assert (made.format, made.notes) == ("nectar", ("columns not used: turns",))
        row = made.rows[0]
        said = [turns[-1].content for turns in (row.prompt, row.chosen, row.rejected)]
        assert said == ["q", "good", "bad"]


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (RANKED[:1], "at least two"),
        (["a", "b"], "at least two"),
        ([{"answer": "a", "rank": None}, {"answer": "b", "rank": 1}], "each with its rank"),
        ([{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}], "the same rank"),
        ([{"answer": None, "rank": 1}, {"answer": "b", "rank": 2}], "null"),
    ],
)
def test_answers_that_are_not_ranked_are_refused(answers: Any, told: str) -> None:
    with pytest.raises(DataError, match=f"row 1.*{told}"):
        read({"prompt": "q", "answers": answers}, (Preference,))
