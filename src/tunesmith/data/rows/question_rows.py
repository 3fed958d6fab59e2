"""Rows of a question and its answer, under the names that data sets give the two.

question-answer    {"question", "answer"} or another two of `QUESTIONS`, with or without what they are about (context,
                   article, input)
multiple-choice    {"question", "choices": […], "solution"}, or an explanation in place of the solution
unanswerable       {"article", "unanswerable_question"}: the answer is that the article does not say it

Each may have a system turn (system, system_prompt). Axolotl has a type for each of these, which words them as well;
here they are turns of a chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.data.problems import shown
from tunesmith.data.reading.empty_cells import is_filled
from tunesmith.data.rows.beside import one_of, tools_of, with_system
from tunesmith.data.rows.messages import Names, Unreadable, need, parsed, text_of
from tunesmith.data.types import Conversation, Message, Origin

RawColumns = Mapping[str, Any]

QUESTIONS = (
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("prompt", "response"),
    ("prompt", "generation"),
    ("instruction", "response"),
    ("instruction", "answer"),
    ("INSTRUCTION", "RESPONSE"),
    ("message_1", "message_2"),
    ("article", "summary"),
)
CONTEXTS = ("context", "article", "input")
UNKNOWN = (
    "The context provided does not contain any information about your inquiry. "
    "Therefore, I'm unable to answer your question based on the given context."
)
"""The answer of Axolotl's context_qa.load_404."""


def question_answer(row: RawColumns, origin: Origin, names: Names | None = None) -> Conversation:
    """An input, or a context, stands behind an instruction and before any other question."""
    asked, answer = _the_two(row)
    question, context = text_of(row, asked), one_of(row, [name for name in CONTEXTS if name != asked])
    if context:
        parts = (question, context) if asked.lower() == "instruction" else (context, question)
        question = "\n\n".join(parts)
    turns = (Message("user", question), Message("assistant", text_of(row, answer)))
    return Conversation(with_system(turns, row), origin, tools_of(row))


def passed_over_questions(row: RawColumns) -> set[str]:
    """Columns that could be a question or an answer, and are not looked at since others are."""
    try:
        used = {*_the_two(row), *CONTEXTS}
    except Unreadable:
        return set()
    return {name for pair in QUESTIONS for name in pair if name not in used and row.get(name) not in (None, "")}


def multiple_choice(row: RawColumns, origin: Origin, names: Names | None = None) -> Conversation:
    choices = parsed(need(row, "choices"), "'choices'")
    if not isinstance(choices, list | tuple) or not choices or not all(isinstance(one, str) for one in choices):
        raise Unreadable("the column 'choices' must be a list of texts", found=shown(choices, 40))
    said = one_of(row, ("solution", "explanation"))
    if not said:
        raise Unreadable("the row has neither solution nor explanation")
    question = "\n".join([text_of(row, "question"), *(f"- {choice}" for choice in choices)])
    return Conversation(with_system((Message("user", question), Message("assistant", said)), row), origin)


def unanswerable(row: RawColumns, origin: Origin, names: Names | None = None) -> Conversation:
    question = f"{text_of(row, 'article')}\n\n{text_of(row, 'unanswerable_question')}"
    return Conversation(with_system((Message("user", question), Message("assistant", UNKNOWN)), row), origin)


def _the_two(row: RawColumns) -> tuple[str, str]:
    """The columns of question and answer: the one pair of `QUESTIONS` that the row fills, or else has."""
    for is_there in (lambda name: is_filled(row.get(name)), row.__contains__):
        there = [pair for pair in QUESTIONS if all(map(is_there, pair))]
        there = [pair for pair in there if pair != ("article", "summary")] or there
        if len(there) > 1:
            found = "; ".join(f"{asked} and {answer}" for asked, answer in there)
            fix = (
                "have those not read that are not meant: data.columns={response: null}; or word the rows by a template"
            )
            raise Unreadable("more than one pair of columns can be question and answer", found=found, fix=fix)
        if there:
            return there[0]
    raise Unreadable("the row has no question with an answer")


@dataclass(frozen=True)
class Unclear:
    """Columns that could mean several things. `ways`: the formats that say which of them is meant; `guess`: the format
    that has these columns among others, and would be taken."""

    names: frozenset[str]
    guess: str
    ways: tuple[str, ...]


UNCLEAR = {
    "a prompt beside a text": Unclear(
        frozenset({"prompt", "text"}),
        "text",
        ("text", '{prompt: "{{ prompt }}", answer: "{{ text }}"}'),
    ),
    "a question with options for its answer": Unclear(
        frozenset({"question", "options", "answer"}),
        "question-answer",
        ("question-answer", '{prompt: "{{ question }}\\n{{ options | tojson }}", answer: "{{ answer }}"}'),
    ),
    "a question with its category": Unclear(
        frozenset({"category", "question", "answer"}),
        "question-answer",
        ("question-answer", '{prompt: "{{ category }}: {{ question }}", answer: "{{ answer }}"}'),
    ),
    "an answer and its correction": Unclear(
        frozenset({"instruction", "output", "reflection", "corrected"}),
        "alpaca",
        (
            "alpaca",
            '{prompt: "{{ instruction }}", answer: "{{ corrected }}"}',
            '{prompt: "{{ instruction }}", answer: "{{ output }}\\n\\n{{ reflection }}\\n\\n{{ corrected }}"}',
        ),
    ),
    "an answer, its critique and its revision": Unclear(
        frozenset({"instruction", "answer", "critique", "revision"}),
        "question-answer",
        (
            '{prompt: "{{ instruction }}", answer: "{{ answer }}"}',
            '{prompt: "{{ instruction }}\\n\\n{{ answer }}", answer: "{{ critique }}"}',
            '{prompt: "{{ instruction }}\\n\\n{{ answer }}\\n\\n{{ critique }}", answer: "{{ revision }}"}',
        ),
    ),
    "a choice with its solution and its explanation": Unclear(
        frozenset({"question", "choices", "solution", "explanation"}),
        "multiple-choice",
        (
            '{prompt: "{{ question }}\\n{{ choices | join(\', \') }}", answer: "{{ solution }}"}',
            '{prompt: "{{ question }}\\n{{ choices | join(\', \') }}", answer: "{{ explanation }}"}',
        ),
    ),
}
"""By what they hold."""
