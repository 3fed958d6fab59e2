"""Rows, prompts, scoring and the reward of the SQL task."""

from __future__ import annotations

import json

import pytest

from tunesmith.demo import task


@pytest.fixture(scope="module")
def small():
    return task.make_task(num_rows=40, num_test=20, seed=5)


def test_rows_alternate_and_name_the_schema_once(small):
    for row in small.training:
        messages = task.conversation(row)
        assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * len(row)]
        assert messages[1]["content"].startswith(row[0].schema.prompt())
        assert messages[1]["content"].endswith(row[0].text)
        assert [m["content"] for m in messages[2::2]] == [question.sql for question in row]
        assert not any("->" in m["content"] for m in messages[3:])


def test_few_shot_prompt_shares_its_beginning(small):
    shots = small.shots()
    assert len(shots) == task.NUM_SHOTS
    prompts = [task.prompt(question, shots) for question in small.tables]
    assert all(prompt[:-1] == prompts[0][:-1] for prompt in prompts)
    assert [m["content"] for m in prompts[0][2::2]] == [shot.sql for shot in shots]
    assert task.prompt(small.tables[0])[1:] == prompts[0][-1:]
    kinds = [(bool(s.ask.order), bool(s.ask.parent), s.ask.grouped) for s in shots]
    assert kinds[0][0]
    assert kinds[1][1]
    assert kinds[2][2]


def test_judged_by_running(small):
    for question in small.tables + small.combinations:
        assert task.judge(question, question.sql).correct
        assert task.judge(question, f"Sure:\n```sql\n{question.sql};\n```").correct
        for mistake, wrong in question.corrupted().items():
            assert not task.judge(question, wrong).correct, mistake


def test_files_hold_all_that_scoring_needs(small, tmp_path):
    paths = task.write_task(small, tmp_path)
    rows = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in paths.items()}
    assert {name: len(content) for name, content in rows.items()} == {
        "train": 40 * task.NUM_BLOCKS,
        "tables": 20,
        "combinations": 20,
    }
    for row in rows["tables"] + rows["combinations"]:
        assert task.judge_row(row, row["sql"]).correct
        assert not task.judge_row(row, "SELECT 1 WHERE 0").correct
    assert task.write_task(small, tmp_path) == paths


def test_reward_is_batched_and_takes_both_shapes_of_completion(small):
    rows = [task.test_row(question) for question in small.tables[:3]]
    columns = {name: [row[name] for row in rows] for name in ("sql", "domain", "seed")}
    right = [row["sql"] for row in rows]
    chats = [[{"role": "assistant", "content": text}] for text in right]
    assert task.execution_reward(right, **columns, prompts=["ignored"] * 3) == [1.0, 1.0, 1.0]
    assert task.execution_reward(chats, **columns) == [1.0, 1.0, 1.0]
    assert task.execution_reward(["", "DROP TABLE x", right[2]], **columns) == [0.0, 0.0, 1.0]
