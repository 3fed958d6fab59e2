"""Whether a search finds LoRA+'s ratio: the one found for the price of 1.5 runs beside all six ratios run out.

    python benchmarks/search.py                        50 steps of 8 rows, three seeds: about 40 minutes on two cores
    python benchmarks/search.py --steps 20 --seeds 2

The search sees one seed and its own held-out rows. The six are then trained whole on every seed and compared on rows
that training never saw, with the ratio found as the baseline: the search did its work where no other is better beyond
the noise. Broken off, the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from prepare import REPOSITORY, make_model
from result import Result, load_average, warn_if_busy

import tunesmith

RATIOS = (1, 2, 4, 8, 16, 20)
KEY = "adapter.lr_ratio"
BUDGET = 1.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "runs" / "search-benchmark")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    before = warn_if_busy()
    plan: dict[str, Any] = {
        "recipe": str(REPOSITORY / "recipes" / "alpaca.yaml"),
        "shared": {
            "model.name": str(make_model()),
            "train.epochs": None,
            "train.steps": options.steps,
            "train.learning_rate": options.learning_rate,
        },
    }
    found = tunesmith.search(
        plan | {"space": {KEY: list(RATIOS)}, "budget": BUDGET, "folder": str(options.folder / "search")}
    )
    study = tunesmith.compare(
        plan
        | {
            "arms": {name(ratio): {KEY: ratio} for ratio in RATIOS},
            "baseline": name(found.best[KEY]),
            "seeds": list(range(options.seeds)),
            "test": {"rows": 0.1},
            "prompting": [],
            "folder": str(options.folder / "run-out"),
        }
    )
    arms = {arm: row["figures"]["loss"] for arm, row in study.results["arms"].items()}
    lowest = min(arms, key=lambda arm: arms[arm]["value"])
    better = [
        one["arm"]
        for one in study.results["comparisons"]
        if one["measure"] == "loss" and one["differs"] and one["value"] < 0
    ]
    chosen = name(found.best[KEY])
    result = Result(
        benchmark="search",
        subject="lr-ratio",
        settings={
            "steps": options.steps,
            "seeds": options.seeds,
            "learning_rate": options.learning_rate,
            "ratios": list(RATIOS),
            "budget_runs": BUDGET,
        },
        load_average={"before": before, "after": load_average()},
        contenders={
            arm: {key: figures[key] for key in ("value", "low", "high", "by_seed")} for arm, figures in arms.items()
        },
        ratios={},
        measures={
            "found": chosen,
            "lowest": lowest,
            "better_than_found": better,
            "found_minus_lowest": arms[chosen]["value"] - arms[lowest]["value"],
            "steps_of_the_search": found.results["steps"],
            "runs_of_the_search": found.results["runs"],
            "trials": [{key: trial[key] for key in ("values", "rungs")} for trial in found.results["trials"]],
            "verdicts": study.verdicts,
        },
    )
    print(f"found {chosen} in {found.results['runs']:.2f} runs; lowest of those run out: {lowest}")
    print(f"better than what was found, beyond the noise: {', '.join(better) or 'none'}")
    if not options.no_write:
        print(f"written: {result.write().relative_to(REPOSITORY)}", file=sys.stderr)
    return 1 if better else 0


def name(ratio: float) -> str:
    return f"ratio {ratio}"


if __name__ == "__main__":
    sys.exit(main())
