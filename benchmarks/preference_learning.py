"""What preference tuning learns: right SQL over wrong SQL, and the answers of a chat that people liked better.

    python benchmarks/preference_learning.py                 both tasks, about forty minutes on two cores
    python benchmarks/preference_learning.py --task sql --losses sigmoid,simpo

sql   a short supervised run on the demo's questions; then, from its adapter, each loss on pairs of the right query and
      one with a common mistake (another column, a turned comparison, a dropped condition …). Held out: pairs, and
      questions whose answers are run, about tables never seen. The queries must not become worse.
chat  DPO on real pairs (`dpo_en_sharegpt.json`), the margin on pairs held out.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from prepare import SHARED, make_model
from result import HERE, Result, load_average, warn_if_busy

from tunesmith.demo.generator import Question, training_questions
from tunesmith.demo.task import conversation, make_task, prompt
from tunesmith.evaluate import Item, evaluate
from tunesmith.models.session import Params
from tunesmith.recipe import from_dict
from tunesmith.run import Trained, train
from tunesmith.score.intervals import paired_change, wilson

LOSSES = {
    "sigmoid": {"nll_weight": 5.0},
    "kto": {"desirable_weight": 4.0},
    "orpo": {"beta": 0.5},
    "simpo": {"beta": 2.0, "gamma": 1.0, "nll_weight": 5.0},
}
"""Each with its own settings; the rest is the same for all."""


def pair(question: Question, rng: random.Random) -> dict[str, Any]:
    wrong = question.corrupted()
    said = [{"role": "assistant", "content": text} for text in (question.sql, wrong[rng.choice(sorted(wrong))])]
    return {"prompt": prompt(question), "chosen": said[:1], "rejected": said[1:]}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answered(trained: Trained, questions: list[Question]) -> list[float]:
    """1 for each question whose query is right in both databases."""
    items = [
        Item(tuple(map(_message, prompt(question))), question.sql, {"databases": list(question.databases())})
        for question in questions
    ]
    made = evaluate(trained.session, items, "sql", adapter="trained", params=Params(max_new_tokens=96), max_rows=32)
    return made.scores["sql"]


def _message(turn: dict[str, str]) -> Any:
    from tunesmith.data.types import Message

    return Message(turn["role"], turn["content"])


def share(right: list[float]) -> dict[str, float]:
    found = wilson(round(sum(right)), len(right))
    return {"value": found.value, "low": found.low, "high": found.high, "count": len(right)}


def sql(model: Path, folder: Path, losses: list[str], options: argparse.Namespace) -> dict[str, Any]:
    task = make_task()
    tests = [*task.tables, *task.combinations]
    rng = random.Random(0)
    fresh = [question for row in training_questions(options.pairs // 5 + 1, 5, 7) for question in row]
    learned = write(folder / "sft.jsonl", [{"messages": conversation(row)} for row in task.training])
    rows = write(folder / "pairs.jsonl", [pair(q, rng) for q in fresh if q.corrupted()][: options.pairs])
    held_out = write(folder / "held_out.jsonl", [pair(q, rng) for q in tests if q.corrupted()])
    start = train(
        from_dict(
            {
                "model": {"name": str(model)},
                "data": {"train": learned, "shuffle": False},
                "adapter": {"r": 16, "alpha": 32},
                "train": {"steps": options.sft_steps, "batch_size": 2, "learning_rate": 1e-3},
                "output": {"folder": str(folder / "sft")},
            }
        )
    )
    before = answered(start, tests)
    print(f"after {options.sft_steps} supervised steps: {share(before)}", flush=True)
    found: dict[str, Any] = {"supervised": {"execution accuracy": share(before), "steps": options.sft_steps}}
    for loss in losses:
        trained = train(
            from_dict(
                {
                    "model": {"name": str(model), "adapter": str(folder / "sft")},
                    "data": {"train": rows, "held_out": held_out},
                    "objective": {"kind": "preference", "loss": loss, **LOSSES[loss]},
                    "train": {
                        "steps": options.steps,
                        "batch_size": 16 if loss == "kto" else 8,  # kto counts answers
                        "learning_rate": options.learning_rate,
                        "evaluate_every": 75,
                        "publish": "last",
                    },
                    "output": {"folder": str(folder / loss)},
                }
            )
        )
        after = answered(trained, tests)
        change = paired_change(before, after)
        last = [json.loads(line) for line in (folder / loss / "metrics.jsonl").read_text().splitlines()]
        held = [line["metrics"] for line in last if line["event"] == "evaluation"][-1]
        found[loss] = {
            "settings": LOSSES[loss],
            "held-out": held,
            "execution accuracy": share(after),
            "change": {"value": change.difference, "low": change.low, "high": change.high},
            "seconds": trained.ended.train_seconds,
        }
        print(f"{loss}: {json.dumps(found[loss])}", flush=True)
    return found


def chat(model: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    trained = train(
        from_dict(
            {
                "model": {"name": str(model)},
                "data": {
                    "train": str(SHARED / "preference" / "dpo_en_sharegpt.json"),
                    "held_out": 100,
                    "max_length": 512,
                    "overlong": "truncate",  # else two pairs of three are left out
                },
                "objective": {"kind": "preference"},
                "train": {
                    "epochs": 4,
                    "batch_size": 8,
                    "learning_rate": options.chat_learning_rate,
                    "evaluate_every": 25,
                    "publish": "last",
                },
                "output": {"folder": str(folder / "chat")},
            }
        )
    )
    lines = [json.loads(line) for line in (folder / "chat" / "metrics.jsonl").read_text().splitlines()]
    held = [{"step": line["step"], **line["metrics"]} for line in lines if line["event"] == "evaluation"]
    return {"evaluations": held, "steps": trained.ended.step, "seconds": trained.ended.train_seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sql,chat")
    parser.add_argument("--losses", default=",".join(LOSSES))
    parser.add_argument("--sft-steps", type=int, default=120)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--pairs", type=int, default=960)
    parser.add_argument("--chat-learning-rate", type=float, default=3e-4)
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    before, model, measures = warn_if_busy(), make_model(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        if "sql" in options.task:
            measures["sql"] = sql(model, Path(folder), options.losses.split(","), options)
        if "chat" in options.task:
            measures["chat"] = chat(model, Path(folder), options)
    settings = {key: value for key, value in vars(options).items() if key != "no_write"}
    result = Result("preference-learning", "", settings, {"before": before, "after": load_average()}, {}, {}, measures)
    if not options.no_write:
        print(f"written: {result.write().relative_to(HERE.parent)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
