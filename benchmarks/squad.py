"""What SQuAD 2.0 training teaches the small model: exact match and F1 before and after, and against always refusing.

    python benchmarks/squad.py                  trains by recipes/squad.yaml, asks 956 rows
    python benchmarks/squad.py --adapter RUN    scores a run that is there already

The tuned model answers twice: token by token, and by beam search, which finds the most probable whole answer. More than
half of the questions have no answer in their paragraph: a model that always refuses scores high. What counts is the
paired difference to that, on the same questions, with its interval.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from prepare import REPOSITORY, SHARED, make_model
from result import Result, load_average, warn_if_busy

from tunesmith import Params, load, open_session
from tunesmith.data.formats import convert
from tunesmith.data.reading.sources import read
from tunesmith.evaluate import Evaluation, Item, evaluate, item_of
from tunesmith.run import train
from tunesmith.score.intervals import paired_change
from tunesmith.score.text import REFUSALS, exact_match, f1

SQUAD = SHARED / "squad_v2"
RECIPE = REPOSITORY / "recipes" / "squad.yaml"
SCORERS = {"exact": exact_match, "f1": f1}


def questions(limit: int | None) -> list[Item]:
    """The validation rows, asked as recipes/squad.yaml asks."""
    settings = load(RECIPE, [f"data.train={SQUAD / 'train.jsonl'}"]).recipe.data
    raw = read(str(SQUAD / "validation.jsonl"), limit=limit)
    rows = convert(raw, settings.format, settings.columns).rows
    return [item_of(row, dict(values), values["answers"]) for row, (_, values) in zip(rows, raw, strict=True)]


def against(before: dict[str, list[float]], after: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """The paired differences, by scorer."""
    changes = {name: paired_change(before[name], after[name]) for name in SCORERS}
    return {name: {"difference": c.difference, "low": c.low, "high": c.high} for name, c in changes.items()}


def figures(evaluation: Evaluation) -> dict[str, Any]:
    means = {}
    for name in SCORERS:
        for part, mean in {"all": evaluation.mean(name), **evaluation.by_part(name)}.items():
            means[f"{name}, {part}"] = {"value": mean.value, "low": mean.low, "high": mean.high, "count": mean.count}
    return means


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="ask only the first so many rows")
    parser.add_argument("--adapter", type=Path, help="a run folder, in place of training")
    parser.add_argument("--beams", type=int, default=4, help="answers that compete")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    before = warn_if_busy()
    model = make_model()
    with tempfile.TemporaryDirectory() as folder:
        run = options.adapter or Path(folder) / "run"
        if options.adapter is None:
            changes = [f"model.name={model}", f"data.train={SQUAD / 'train.jsonl'}", f"output.folder={run}"]
            train(load(RECIPE, changes))
        summary = json.loads((run / "summary.json").read_text())
        session, items = open_session(str(run), base=str(model)), questions(options.limit)
        ways = {
            "base": (None, Params(max_new_tokens=40)),
            "tuned, token by token": (session.adapter, Params(max_new_tokens=40)),
            "tuned": (session.adapter, Params(max_new_tokens=40, num_beams=options.beams)),
        }
        made = {
            name: evaluate(session, items, list(SCORERS), adapter=adapter, params=params, max_rows=32)
            for name, (adapter, params) in ways.items()
        }
    refused = {name: [score(REFUSALS[0], item.gold) for item in items] for name, score in SCORERS.items()}
    measures = {
        "always refuse": {name: sum(values) / len(values) for name, values in refused.items()},
        "tuned less always refuse": against(refused, made["tuned"].scores),
        "tuned, token by token, less always refuse": against(refused, made["tuned, token by token"].scores),
        "tuned less base": against(made["base"].scores, made["tuned"].scores),
    }
    result = Result(
        benchmark="squad",
        subject="",
        settings={
            "questions": len(items),
            "num_beams": options.beams,
            **{k: summary.get(k) for k in ("step", "train_seconds", "num_tokens")},
        },
        load_average={"before": before, "after": load_average()},
        contenders={name: figures(evaluation) for name, evaluation in made.items()},
        ratios={},
        measures=measures,
    )
    if not options.no_write:
        print(f"written: {result.write().relative_to(REPOSITORY)}", file=sys.stderr)
    print(json.dumps({**result.contenders, **measures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
