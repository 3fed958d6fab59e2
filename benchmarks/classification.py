"""Ways to build a classifier, accuracy against seconds: features, head, the last blocks, LoRA, full, by generation, and
what costs less: TF-IDF and a small encoder.

    python benchmarks/classification.py --task spam             real messages, spam or ham
    python benchmarks/classification.py --task answerable       can the question be answered from its text? (SQuAD 2.0)
    python benchmarks/classification.py --task spam --ways features,lora --steps 20

Held-out rows (a tenth of the training rows) choose the learning rate's checkpoint; the reported rows are the validation
file's, seen once. Seconds are those of the whole run (reading, loading, what is computed beforehand, training), without
evaluation and saving; every way begins with an empty cache of features and of frozen blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from prepare import SHARED, make_encoder, make_model
from result import HERE, Result, load_average, warn_if_busy

from tunesmith.classifier import Classifier
from tunesmith.data.types import Message
from tunesmith.evaluate import Item, evaluate
from tunesmith.machine import cache_folder
from tunesmith.models.session import Params
from tunesmith.recipe import from_dict
from tunesmith.run import train
from tunesmith.score.intervals import wilson

PICTURE = HERE.parent / "docs" / "images"
GENERATION = {
    "spam": ("Is the message spam or ham? Answer with one word.", "{text}"),
    "answerable": ("Can the question be answered from the text? Answer yes or no.", "{text}"),
}
WAYS: dict[str, dict[str, Any]] = {
    "features, logistic": {"objective.way": "features"},
    "features, SVM": {"objective.way": "features", "objective.fit": "svm"},
    "head": {"objective.way": "head", "train.learning_rate": 1e-2},
    "last 1 block": {"objective.way": "head", "adapter.last_blocks": 1, "train.learning_rate": 2e-4},
    "last 2 blocks": {"objective.way": "head", "adapter.last_blocks": 2, "train.learning_rate": 2e-4},
    "last 4 blocks": {"objective.way": "head", "adapter.last_blocks": 4, "train.learning_rate": 1e-4},
    "last 8 blocks": {"objective.way": "head", "adapter.last_blocks": 8, "train.learning_rate": 1e-4},
    "LoRA": {"adapter.method": "lora", "train.learning_rate": 1e-3},
    "full": {"adapter.method": "full", "train.learning_rate": 5e-5},
}


def rows_of(task: str, side: str, limit: int | None) -> list[dict[str, str]]:
    """{"text", "label"} of the training or the validation file."""
    if task == "spam":
        import csv

        with (SHARED / "spam" / f"{side}.csv").open(encoding="utf-8") as file:
            rows = [{"text": row["text"], "label": row["label"]} for row in csv.DictReader(file)]
    else:
        lines = (SHARED / "squad_v2" / f"{side}.jsonl").read_text().splitlines()
        given = [json.loads(line) for line in lines]
        rows = [
            {
                "text": f"{row['context']}\nQuestion: {row['question']}\nCan it be answered from the text?",
                "label": "no" if row["is_impossible"] else "yes",
            }
            for row in given
        ]
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[index] for index in order][:limit]


def empty_cache(folder: Path) -> None:
    """A cache of its own for what follows: with the faster dtype and the kernels, and without features."""
    known, own = Path(os.environ.get("KNOWN_CACHE") or cache_folder()), folder.with_name(f"{folder.name}-cache")
    os.environ["KNOWN_CACHE"] = str(known)
    own.mkdir(parents=True)
    for name in ("kernels", "fastest-dtype.json"):
        if (known / name).exists():
            (own / name).symlink_to(known / name)
    os.environ["TUNESMITH_CACHE"] = str(own)


def by_tunesmith(
    model: Path,
    changes: dict[str, Any],
    rows: list[dict[str, str]],
    tests: list[dict[str, str]],
    steps: int,
    folder: Path,
) -> dict[str, Any]:
    """Train one way; its accuracy on `tests` and the seconds that it took."""
    values: dict[str, Any] = {
        "model": {"name": str(model)},
        "data": {"train": "rows", "held_out": max(1, len(rows) // 10), "max_length": 512, "overlong": "truncate"},
        "objective": {"kind": "classify"},
        "train": {"steps": steps, "batch_size": 16, "evaluate_every": max(1, steps // 4)},
        "output": {"folder": str(folder)},
    }
    empty_cache(folder)
    begun = time.perf_counter()
    trained = train(from_dict(values, [f"{key}={value}" for key, value in changes.items()]), rows=rows, quiet=True)
    whole = time.perf_counter() - begun
    classifier = Classifier(trained.session)
    started = time.perf_counter()
    found = classifier.classify([row["text"] for row in tests])
    asked = time.perf_counter() - started
    right = [float(made.label == row["label"]) for made, row in zip(found, tests, strict=True)]
    ended = trained.ended
    apart = ended.evaluation_seconds + ended.saving_seconds
    counts = trained.session.sets["trained"].counts()
    return {
        "seconds": whole - apart,
        "seconds_whole": whole,
        "seconds_asked": asked,
        "trained": counts.trained,
        "right": right,
        "steps": ended.step,
    }


def by_generation(
    model: Path, task: str, rows: list[dict[str, str]], tests: list[dict[str, str]], steps: int, folder: Path
) -> dict[str, Any]:
    """LoRA on label words, answered by writing them."""
    system, _ = GENERATION[task]
    values: dict[str, Any] = {
        "model": {"name": str(model)},
        "data": {
            "train": "rows", "held_out": max(1, len(rows) // 10), "max_length": 640, "overlong": "drop",
            "format": {"system": system, "prompt": "{{ text }}", "answer": "{{ label }}"},
        },
        "adapter": {"method": "lora", "r": 8, "alpha": 16},
        "train": {"steps": steps, "batch_size": 16, "evaluate_every": max(1, steps // 4), "learning_rate": 1e-3},
        "output": {"folder": str(folder)},
    }  # fmt: skip
    begun = time.perf_counter()
    trained = train(from_dict(values), rows=rows, quiet=True)
    whole = time.perf_counter() - begun
    items = [Item((Message("system", system), Message("user", row["text"])), row["label"]) for row in tests]
    started = time.perf_counter()
    made = evaluate(trained.session, items, "label", adapter="trained", params=Params(max_new_tokens=4), max_rows=16)
    return {
        "seconds": whole - trained.ended.evaluation_seconds - trained.ended.saving_seconds,
        "seconds_whole": whole,
        "seconds_asked": time.perf_counter() - started,
        "trained": trained.session.sets["trained"].counts().trained,
        "right": made.scores["label"],
        "steps": trained.ended.step,
    }


def by_words(rows: list[dict[str, str]], tests: list[dict[str, str]]) -> dict[str, Any]:
    """TF-IDF of words and pairs of words, and logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline

    begun = time.perf_counter()
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LogisticRegressionCV(
            Cs=[0.1, 1, 10, 100],
            cv=3,
            max_iter=2000,
            l1_ratios=(0,),
            use_legacy_attributes=False,
            scoring="neg_log_loss",
        ),
    )
    model.fit([row["text"] for row in rows], [row["label"] for row in rows])
    seconds = time.perf_counter() - begun
    started = time.perf_counter()
    found = model.predict([row["text"] for row in tests])
    asked = time.perf_counter() - started
    right = [float(made == row["label"]) for made, row in zip(found, tests, strict=True)]
    trained = int(model[-1].coef_.size)
    times = {"seconds": seconds, "seconds_whole": seconds, "seconds_asked": asked}
    return {**times, "trained": trained, "right": right, "steps": 0}


def draw(path: Path, task: str, found: dict[str, dict[str, Any]], majority: float) -> None:
    """Each way as a number, named in a list beside the axes: names at the points would cover one another."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 4.8), dpi=150, layout="constrained", facecolor="white")
    axes, names = figure.subplots(1, 2, width_ratios=[2.1, 1])
    order = sorted(found, key=lambda name: found[name]["seconds"])
    low = min(one["accuracy"]["low"] for one in found.values())
    shows_majority = majority > low - 0.1
    for number, name in enumerate(order, 1):
        one = found[name]
        value, least, most = (100 * one["accuracy"][key] for key in ("value", "low", "high"))
        colour = "#2b8a57" if "TF-IDF" in name else "#d9730d" if "encoder" in name else "#2f6fbb"
        axes.plot([one["seconds"]] * 2, [least, most], color=colour, linewidth=1.4, alpha=0.45)
        axes.plot(one["seconds"], value, "o", color=colour, markersize=13)
        axes.annotate(str(number), (one["seconds"], value), ha="center", va="center", fontsize=7.5, color="white")
        text = f"{number:>2}  {name}: {value:.1f} %, {one['seconds']:.0f} s"
        names.text(0, 1 - (number - 0.5) / len(order), text, fontsize=8.5, color=colour, va="center")
    if shows_majority:
        axes.axhline(100 * majority, color="#8b949e", linestyle="--", linewidth=1)
    names.set_axis_off()
    names.set_ylim(0, 1)
    axes.set_xscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("seconds of the run without evaluation (log scale)", fontsize=9)
    axes.set_ylabel("accuracy on the validation rows, %, 95 % intervals", fontsize=9)
    share = f"always the commonest class: {majority:.1%}" + (" (dashed)" if shows_majority else "")
    axes.set_title(f"{task}; {share}", loc="left", fontsize=10, fontweight="bold")
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(GENERATION), default="spam")
    parser.add_argument("--ways", default=None, help="some of the ways, by a part of their names, with commas")
    parser.add_argument("--rows", type=int, default=None, help="training rows (default: all)")
    parser.add_argument("--tests", type=int, default=None, help="validation rows (default: all)")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--draw", type=Path, default=None, help="only draw the picture of a result file")
    options = parser.parse_args()
    if options.draw is not None:
        told = json.loads(options.draw.read_text())
        out = PICTURE / f"classification-{told['subject']}.png"
        draw(out, told["subject"], told["contenders"], told["measures"]["commonest_class"])
        return
    before = warn_if_busy()
    model, encoder = make_model(), make_encoder()
    rows, tests = rows_of(options.task, "train", options.rows), rows_of(options.task, "validation", options.tests)
    folder = Path(tempfile.mkdtemp())
    every: dict[str, Callable[[Path], dict[str, Any]]] = {"TF-IDF, logistic": lambda _: by_words(rows, tests)}
    for name, changes in WAYS.items():
        every[name] = lambda at, changes=changes: by_tunesmith(model, changes, rows, tests, options.steps, at)
    for name in ("features, logistic", "LoRA", "full"):
        changes = WAYS[name] | ({"train.learning_rate": 2e-4} if name == "full" else {})
        every[f"small encoder, {name}"] = lambda at, changes=changes: by_tunesmith(
            encoder, changes, rows, tests, options.steps, at
        )
    every["LoRA, by generation"] = lambda at: by_generation(model, options.task, rows, tests, options.steps, at)
    wanted = None if options.ways is None else options.ways.split(",")
    labels = [row["label"] for row in tests]
    majority = max(labels.count(label) for label in set(labels)) / len(labels)
    print(f"{len(rows):,} rows to learn from, {len(tests):,} to report; the commonest class {majority:.1%}")
    found: dict[str, dict[str, Any]] = {}
    for number, (name, measure) in enumerate(every.items()):
        if wanted is not None and not any(
            part == name if part in every else part.lower() in name.lower() for part in wanted
        ):
            continue
        one = measure(folder / str(number))
        right = one.pop("right")
        share = wilson(round(sum(right)), len(right))
        one["accuracy"] = {"value": share.value, "low": share.low, "high": share.high, "count": len(right)}
        found[name] = one
        print(
            f"{name:<30} {share.value:6.1%} [{share.low:.1%}, {share.high:.1%}]  {one['seconds']:8.1f} s trained  "
            f"{one['seconds_asked']:6.1f} s asked  {one['trained']:>12,} weights",
            flush=True,
        )
    if options.no_write:
        return
    result = Result(
        "classification",
        options.task,
        {"steps": options.steps, "rows": len(rows), "tests": len(tests), "batch_size": 16, "seed": 0, "ways": WAYS},
        {"before": before, "after": load_average()},
        found,
        {},
        {"commonest_class": majority},
    )
    print(f"written: {result.write().relative_to(HERE.parent)}")
    draw(PICTURE / f"classification-{options.task}.png", options.task, found, majority)


if __name__ == "__main__":
    main()
