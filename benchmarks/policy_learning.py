"""What online learning learns: SQL that runs, from a start that is right a third of the time; and easier things.

    python benchmarks/policy_learning.py                     all of it, about three quarters of an hour on two cores
    python benchmarks/policy_learning.py --task digits,addition

sql      a short supervised run on the demo's questions; then GRPO with the execution reward, on questions about other
         tables. Held out: questions about tables never seen, and combinations of forms never seen.
digits   from the base: the share of an answer's characters that are digits.
short    from the base: answers of twelve tokens.
tags     from the base: the answer between <answer> and </answer>, as the system turn asks.
addition after a short supervised run: the sum of two numbers of two digits, right or wrong.
sorting  after a short supervised run: five numbers in order, right or wrong.

Writes a picture of reward and held-out score beside the result.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preference_learning import answered, share, write
from prepare import REPOSITORY, make_model
from result import HERE, Result, load_average, warn_if_busy

from tunesmith.data.types import Message
from tunesmith.demo.generator import training_questions
from tunesmith.demo.task import conversation, make_task, test_row
from tunesmith.evaluate import Item, evaluate
from tunesmith.models.session import Params
from tunesmith.plot import BLUE, FAINT, INK, ORANGE, smoothed
from tunesmith.recipe import from_dict
from tunesmith.run import train
from tunesmith.score.intervals import paired_change

QUESTIONS = REPOSITORY / "recipes" / "data" / "direct_answers.jsonl"


def digit_share(completions: Sequence[Any], **_: Any) -> list[float]:
    """The share of digits among an answer's characters."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [sum(letter.isdigit() for letter in text) / max(len(text), 1) for text in texts]


def tagged(completions: Sequence[Any], **_: Any) -> list[float]:
    """A quarter each for one opening and one closing tag in order, half for ending with it."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    made = []
    for text in texts:
        opened, closed = text.count("<answer>") == 1, text.count("</answer>") == 1
        in_order = closed and "<answer>" in text.partition("</answer>")[0]
        made.append(0.25 * opened + 0.25 * in_order + 0.5 * (in_order and text.strip().endswith("</answer>")))
    return made


def sums(rng: random.Random, count: int) -> list[tuple[str, str]]:
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    return [(f"{a} + {b} =", str(a + b)) for a, b in rng.sample(pairs, count)]


def orders(rng: random.Random, count: int) -> list[tuple[str, str]]:
    made: dict[str, str] = {}
    while len(made) < count:
        numbers = rng.sample(range(10, 100), 5)
        made["Sort: " + " ".join(map(str, numbers))] = " ".join(map(str, sorted(numbers)))
    return list(made.items())


def warmed(model: Path, folder: Path, make: Any, sft_steps: int, steps: int) -> dict[str, Any]:
    """A short supervised run, then GRPO with `exact` as the reward, both on questions that the test does not have."""
    rows = make(random.Random(0), 1300)
    first, prompts, tests = rows[:300], rows[300:1100], rows[1100:]
    learned = write(folder / "sft.jsonl", [{"prompt": q, "completion": a} for q, a in first])
    asked = write(folder / "prompts.jsonl", [{"prompt": q, "answer": a} for q, a in prompts])
    held_out = write(folder / "held_out.jsonl", [{"prompt": q, "answer": a} for q, a in tests])
    items = [Item((Message("user", q),), a) for q, a in tests]

    def right(run: Any) -> list[float]:
        made = evaluate(run.session, items, "exact", adapter="trained", params=Params(max_new_tokens=24), max_rows=64)
        return made.scores["exact"]

    start = train(
        from_dict(
            {
                "model": {"name": str(model)},
                "data": {"train": learned},
                "adapter": {"r": 16, "alpha": 32},
                "train": {"steps": sft_steps, "batch_size": 8, "learning_rate": 1e-3},
                "output": {"folder": str(folder / "sft")},
            }
        ),
        quiet=True,
    )
    before = right(start)
    print(f"after {sft_steps} supervised steps: {share(before)}", flush=True)
    trained = train(
        from_dict(
            {
                "model": {"name": str(model), "adapter": str(folder / "sft")},
                "data": {"train": asked, "held_out": held_out},
                "objective": {
                    "kind": "policy", "rewards": ["exact"], "num_generations": 8, "max_completion_length": 24,
                },
                "train": {
                    "steps": steps, "batch_size": 16, "learning_rate": 2e-4, "schedule": "constant",
                    "evaluate_every": 20, "publish": "last",
                },
                "output": {"folder": str(folder / "grpo")},
            }
        ),
        quiet=True,
    )  # fmt: skip
    after = right(trained)
    change = paired_change(before, after)
    told_steps, held = told(folder / "grpo")
    return {
        "right": {"before": share(before), "after": share(after)},
        "change": {"value": change.difference, "low": change.low, "high": change.high},
        "steps": told_steps,
        "held-out": held,
        "seconds": trained.ended.train_seconds,
    }


def told(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(steps, evaluations) of a run, the numbers that matter of each."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [{"step": x["step"], "seconds": x["seconds"], **x["metrics"]} for x in lines if x["event"] == "step"]
    held = [{"step": x["step"], "reward": x["metrics"]["reward"]} for x in lines if x["event"] == "evaluation"]
    return steps, held


def sql(model: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    task = make_task()
    tests = [*task.tables, *task.combinations]
    learned = write(folder / "sft.jsonl", [{"messages": conversation(row)} for row in task.training])
    fresh = [question for row in training_questions(options.prompts // 5 + 1, 5, 11) for question in row]
    prompts = write(folder / "prompts.jsonl", [test_row(question) for question in fresh][: options.prompts])
    held_out = write(folder / "held_out.jsonl", [test_row(question) for question in tests])
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
    trained = train(
        from_dict(
            {
                "model": {"name": str(model), "adapter": str(folder / "sft")},
                "data": {"train": prompts, "held_out": held_out},
                "objective": {
                    "kind": "policy",
                    "rewards": ["tunesmith.demo.task:execution_reward"],
                    "num_generations": 8,
                    "max_completion_length": 64,
                },
                "train": {
                    "steps": options.steps,
                    "batch_size": 8,
                    "learning_rate": options.learning_rate,
                    "schedule": "constant",
                    "evaluate_every": 20,
                    "publish": "last",
                },
                "output": {"folder": str(folder / "grpo")},
            }
        )
    )
    after = answered(trained, tests)
    change = paired_change(before, after)
    steps, held = told(folder / "grpo")
    return {
        "execution accuracy": {"before": share(before), "after": share(after)},
        "change": {"value": change.difference, "low": change.low, "high": change.high},
        "steps": steps,
        "held-out": held,
        "seconds": trained.ended.train_seconds,
    }


def easy(model: Path, folder: Path, reward: str, steps: int, system: str | None = None) -> dict[str, Any]:
    """From the base, on short questions."""
    form = {} if system is None else {"format": {"system": system, "prompt": "{{ prompt }}"}}
    trained = train(
        from_dict(
            {
                "model": {"name": str(model)},
                "data": {"train": str(QUESTIONS), "held_out": 12, **form},
                "objective": {
                    "kind": "policy",
                    "rewards": [reward],
                    "num_generations": 8,
                    "max_completion_length": 32,
                },
                "train": {
                    "steps": steps,
                    "batch_size": 4,
                    "learning_rate": 2e-4,
                    "schedule": "constant",
                    "evaluate_every": 10,
                    "publish": "last",
                },
                "output": {"folder": str(folder / "easy")},
            }
        )
    )
    told_steps, held = told(folder / "easy")
    return {"steps": told_steps, "held-out": held, "seconds": trained.ended.train_seconds}


def picture(measures: dict[str, Any], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = {"sql": "SQL that runs", "digits": "share of digits", "short": "−|tokens − 12| / 12"}
    names |= {"tags": "answer between tags", "addition": "sums of two digits", "sorting": "five numbers in order"}
    columns = min(3, len(measures))
    rows = -(-len(measures) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), dpi=150, layout="constrained", facecolor="white")
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes in panels[len(measures) :]:
        axes.set_visible(False)
    for axes, (name, found) in zip(panels, measures.items(), strict=False):
        x = [step["step"] for step in found["steps"]]
        rewards = [step["reward"] for step in found["steps"]]
        axes.plot(x, rewards, color=BLUE, alpha=0.25, linewidth=1)
        axes.plot(x, smoothed(rewards, len(x) / 30), color=BLUE, linewidth=1.8, label="sampled (smoothed)")
        held = found["held-out"]
        axes.plot([e["step"] for e in held], [e["reward"] for e in held], "o-", color=ORANGE, label="held out, greedy")
        axes.set_title(names[name], loc="left", fontsize=10, color=INK, fontweight="bold")
        axes.set_xlabel("optimizer step", fontsize=9, color=INK)
        axes.set_ylabel("reward", fontsize=9, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=INK, labelsize=8)
        axes.grid(axis="y", color="#e6e9ed", linewidth=0.8)
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="best")
    FigureCanvasAgg(figure).print_png(str(path))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sql,digits,short,tags,addition,sorting")
    parser.add_argument("--sft-steps", type=int, default=60)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--warm-steps", type=int, default=60, help="supervised steps before addition and sorting")
    parser.add_argument("--easy-steps", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=800)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    before, model, measures = warn_if_busy(), make_model(), dict[str, Any]()
    rewards = {"digits": "policy_learning:digit_share", "short": "length:12", "tags": "policy_learning:tagged"}
    systems = {"tags": "Give the answer between <answer> and </answer>."}
    makers = {"addition": sums, "sorting": orders}
    for name in options.task.split(","):
        with tempfile.TemporaryDirectory() as folder:
            if name == "sql":
                measures[name] = sql(model, Path(folder), options)
            elif name in makers:
                measures[name] = warmed(model, Path(folder), makers[name], options.warm_steps, options.steps)
            else:
                system = systems.get(name)
                measures[name] = easy(model, Path(folder), rewards[name], options.easy_steps, system)
        shown = {key: value for key, value in measures[name].items() if key != "steps"}
        print(f"{name}: {json.dumps(shown)}", flush=True)
    settings = {key: value for key, value in vars(options).items() if key != "no_write"}
    result = Result("policy-learning", "", settings, {"before": before, "after": load_average()}, {}, {}, measures)
    if not options.no_write:
        path = result.write()
        picture(measures, path.with_suffix(".png"))
        print(f"written: {path.relative_to(HERE.parent)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
