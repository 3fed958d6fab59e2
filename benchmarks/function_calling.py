"""What the function-calling recipe teaches: right calls of questions never seen, before and after.

    python benchmarks/function_calling.py                five minutes of training, two hundred questions
    python benchmarks/function_calling.py --minutes 15

Trained on `glaive_toolcall_en.json`, asked the questions of `bfcl_simple_python.jsonl`, scored as the Berkeley
Function-Calling Leaderboard does (AST match): the right function, every required argument, each value among its
alternatives. Base and tuned model get the same prompts and answer token by token.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from typing import Any

from prepare import REPOSITORY, SHARED, make_model
from result import Result, load_average, warn_if_busy

from tunesmith import Params, load
from tunesmith.data.settings import DataSettings
from tunesmith.evaluate import Evaluation, evaluate
from tunesmith.questions import LAST, questions
from tunesmith.run import train
from tunesmith.score.intervals import paired_change

TOOLS = SHARED / "tools"
SCORE = "tool_call"


def figures(evaluation: Evaluation) -> dict[str, Any]:
    mean = evaluation.mean(SCORE)
    return {"right calls": {"value": mean.value, "low": mean.low, "high": mean.high, "count": mean.count}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of training")
    parser.add_argument("--limit", type=int, help="ask only the first so many questions")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    before, model = warn_if_busy(), make_model()
    asked = DataSettings(train=str(TOOLS / "bfcl_simple_python.jsonl"))
    items = questions(asked, 0, True, options.limit, "ground_truth", LAST, print)
    with tempfile.TemporaryDirectory() as folder:
        changes = [
            f"model.name={model}", f"data.train={TOOLS / 'glaive_toolcall_en.json'}", f"output.folder={folder}/run",
            "train.epochs=", f"train.minutes={options.minutes}",
        ]  # fmt: skip
        trained = train(load(REPOSITORY / "recipes" / "function_calling.yaml", changes))
    made = {
        name: evaluate(trained.session, items, SCORE, adapter=adapter, params=Params(max_new_tokens=128), max_rows=16)
        for name, adapter in (("base", None), ("tuned", "trained"))
    }
    change = paired_change(made["base"].scores[SCORE], made["tuned"].scores[SCORE])
    result = Result(
        benchmark="function-calling",
        subject="",
        settings={
            "questions": len(items),
            "minutes": options.minutes,
            "step": trained.ended.step,
            "train_seconds": trained.ended.train_seconds,
        },
        load_average={"before": before, "after": load_average()},
        contenders={name: figures(evaluation) for name, evaluation in made.items()},
        ratios={},
        measures={"tuned less base": {"difference": change.difference, "low": change.low, "high": change.high}},
    )
    if not options.no_write:
        print(f"written: {result.write().relative_to(REPOSITORY)}", file=sys.stderr)
    print(json.dumps({**result.contenders, **result.measures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
