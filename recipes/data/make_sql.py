"""Write the data of sql.yaml into data/sql/ beside this file: questions on tables, and two tests.

train.jsonl         conversations: one schema, several questions
tables.jsonl        questions on tables never seen in training
combinations.jsonl  combinations of forms never seen in training

A test row holds the right query under `sql`, and under `databases` the scripts that fill its two databases.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tunesmith.demo.task import Task, make_task, test_row, write_task


def write(folder: Path, task: Task) -> None:
    write_task(task, folder)
    for name, questions in (("tables", task.tables), ("combinations", task.combinations)):
        rows = [test_row(question) | {"databases": list(question.databases())} for question in questions]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "sql"
    write(target, make_task())
    print(f"wrote train, tables and combinations to {target}")
