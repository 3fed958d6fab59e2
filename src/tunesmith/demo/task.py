"""The demo's task as data: rows to learn from, questions to be scored on, prompts for the base, and the reward.

row of training   {"messages": [system, user, assistant, user, assistant, …]}     one schema, several questions
row of testing    {"messages": [system, user], "sql", "domain", "seed", "parts"}  one question
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.atomic import write_file
from tunesmith.demo.generator import Question, databases, test_questions, training_questions
from tunesmith.demo.schemas import variant
from tunesmith.score.sql import Verdict, execution_match

SYSTEM = "Write one SQLite query."
NUM_ROWS = 300
NUM_BLOCKS = 2
"""A machine that is fast gets on to the second block of `NUM_ROWS`; what the tests ask, the first one has shown."""
TURNS = 5
NUM_TEST = 100
NUM_SHOTS = 3

Message = dict[str, str]


@dataclass(frozen=True)
class Task:
    """`training` holds rows of several questions on one schema; the two tests hold single ones."""

    training: list[list[Question]]
    tables: list[Question]
    combinations: list[Question]

    def forms(self) -> set[tuple[str, ...]]:
        return {question.parts for row in self.training for question in row}

    def shots(self) -> list[Question]:
        """Examples for the base's prompt: a plain, a joined and a grouped question from training."""
        questions = [row[0] for row in self.training]
        wanted = [lambda q: not q.ask.parent and q.ask.order, lambda q: q.ask.parent, lambda q: q.ask.grouped]
        return [next(q for q in questions if fits(q) and q.ask.atoms) for fits in wanted][:NUM_SHOTS]


def make_task(num_rows: int = NUM_ROWS, turns: int = TURNS, num_test: int = NUM_TEST, seed: int = 0) -> Task:
    """The same for the same arguments, on every machine."""
    blocks = [training_questions(num_rows, turns, seed + block) for block in range(NUM_BLOCKS)]
    known = {question.parts for row in blocks[0] for question in row}
    return Task(
        [row for block in blocks for row in block],
        test_questions("tables", num_test, known, seed),
        test_questions("combinations", num_test, known, seed),
    )


def first_turn(question: Question) -> str:
    return f"{question.schema.prompt()}\n{question.text}"


def conversation(questions: Sequence[Question]) -> list[Message]:
    """The schema stands in the first user turn; later turns are questions alone."""
    messages = [{"role": "system", "content": SYSTEM}]
    for index, question in enumerate(questions):
        messages.append({"role": "user", "content": question.text if index else first_turn(question)})
        messages.append({"role": "assistant", "content": question.sql})
    return messages


def prompt(question: Question, shots: Sequence[Question] = ()) -> list[Message]:
    """What the model is asked. `shots`: answered examples before it, the same for every question, so that a batch
    can share them."""
    messages = [{"role": "system", "content": SYSTEM}]
    for shot in shots:
        messages.append({"role": "user", "content": first_turn(shot)})
        messages.append({"role": "assistant", "content": shot.sql})
    messages.append({"role": "user", "content": first_turn(question)})
    return messages


def test_row(question: Question) -> dict[str, Any]:
    return {
        "messages": prompt(question),
        "sql": question.sql,
        "domain": question.schema.domain,
        "seed": question.schema.seed,
        "parts": list(question.parts),
    }


def write_task(task: Task, folder: Path) -> dict[str, Path]:
    """train.jsonl, tables.jsonl and combinations.jsonl, by name without ending."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {
        "train": [{"messages": conversation(row)} for row in task.training],
        "tables": [test_row(question) for question in task.tables],
        "combinations": [test_row(question) for question in task.combinations],
    }
    paths = {}
    for name, content in rows.items():
        paths[name] = folder / f"{name}.jsonl"
        write_file(paths[name], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content))
    return paths


def judge(question: Question, answer: str) -> Verdict:
    """Runs the query found in `answer` in both databases of the question."""
    return execution_match(answer, question.sql, question.databases())


def judge_row(row: dict[str, Any], answer: str) -> Verdict:
    """The same for a row of a test file."""
    return execution_match(answer, row["sql"], databases(variant(row["domain"], row["seed"])))


def execution_reward(
    completions: Sequence[str | list[Message]], sql: Sequence[str], domain: Sequence[str], seed: Sequence[int], **_: Any
) -> list[float]:
    """1 for a right answer, 0 for a wrong one; batched, with the rows' columns as keywords, as TRL calls a reward."""
    rewards = []
    for completion, gold, name, number in zip(completions, sql, domain, seed, strict=True):
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        rewards.append(float(execution_match(text, gold, databases(variant(name, number))).correct))
    return rewards
