"""`tunesmith compare --quick`: a small study on the demo's questions and model, in minutes.

Two methods, two seeds, few steps: it shows what a comparison looks like and tells large differences alone.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.atomic import write_file
from tunesmith.compare import settings
from tunesmith.compare.main import Comparison, compare
from tunesmith.compare.process import Runner, in_process
from tunesmith.demo.small_model import small_model_folder
from tunesmith.demo.task import Task, conversation, make_task, test_row
from tunesmith.notation import write
from tunesmith.progress import Progress

FOLDER = Path("quick-study")
NUM_ROWS, NUM_TEST = 60, 30
STUDY: dict[str, Any] = {
    "recipe": {
        "model": {"name": ""},
        "data": {"train": "data/train.jsonl", "held_out": 8, "format": "messages", "max_length": 1024},
        "adapter": {"method": "lora", "r": 16, "alpha": 32},
        "train": {"steps": 20, "batch_size": 2, "learning_rate": 1e-3, "evaluate_every": 10},
    },
    "arms": {"lora": None, "dora": {"adapter.method": "dora"}},
    "baseline": "lora",
    "seeds": [0, 1],
    "test": {"rows": "data/test.jsonl", "score": "sql", "gold": "sql", "max_new_tokens": 80},
    "prompting": [0],
}


def compare_quickly(
    overrides: Sequence[str] = (), *, quiet: bool = False, folder: Path = FOLDER, runner: Runner = in_process
) -> Comparison:
    """Writes the study (study.yaml, to be changed and run again) and runs it, or what is missing of it."""
    with Progress(quiet=quiet) as progress:
        with progress.stage("preparing the small model"):
            model = small_model_folder(progress.say)
        with progress.stage("making the questions"):
            write_rows(make_task(NUM_ROWS, num_test=NUM_TEST), folder / "data")
        progress.say(
            f"two methods, two seeds, {STUDY['recipe']['train']['steps']} steps each: large differences will show, "
            "small ones cannot"
        )
    values = {**STUDY, "folder": str(folder.absolute())}
    values["recipe"] = {**values["recipe"], "model": {"name": str(model)}}
    write_file(folder / "study.yaml", write(values))
    command = shlex.join(["tunesmith", "compare", "--quick", *overrides])
    return compare(settings.load(folder / "study.yaml", overrides), quiet=quiet, runner=runner, command=command)


def write_rows(task: Task, folder: Path) -> None:
    """train.jsonl, and test.jsonl with the databases that answers are run in."""
    folder.mkdir(parents=True, exist_ok=True)
    training = [{"messages": conversation(row)} for row in task.training[:NUM_ROWS]]
    tests = []
    for question in task.tables:
        row = test_row(question)
        answer = {"role": "assistant", "content": question.sql}
        tests.append(row | {"messages": [*row["messages"], answer], "databases": list(question.databases())})
    for name, rows in (("train", training), ("test", tests)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_file(folder / f"{name}.jsonl", text)
