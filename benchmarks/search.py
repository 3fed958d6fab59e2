"""Whether a search finds LoRA+'s ratio: the one found for the price of 1.5 runs beside all six ratios run out.

    python benchmarks/search.py                        50 steps of 8 rows, three seeds: about 40 minutes on two cores
    python benchmarks/search.py --steps 20 --seeds 2

A tenth of the rows is set aside first. The search sees the rest alone, with a seed of its own; the six are then trained
on it in whole, with other seeds, and compared on what was set aside. Told: the rank of the ratio found, and by how much
it is worse than the others, with paired intervals, whose width says what so few seeds can see. Broken off, the same
command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

from prepare import REPOSITORY, SHARED, make_model
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
    train, test = set_aside(options.folder)
    plan: dict[str, Any] = {
        "recipe": str(REPOSITORY / "recipes" / "alpaca.yaml"),
        "shared": {
            "model.name": str(make_model()),
            "data.train": str(train),
            "train.epochs": None,
            "train.steps": options.steps,
            "train.learning_rate": options.learning_rate,
        },
    }
    own_seed = {"shared": plan["shared"] | {"train.seed": 1000}}
    space = {"space": {KEY: list(RATIOS)}, "budget": BUDGET, "folder": str(options.folder / "search")}
    found = tunesmith.search(plan | own_seed | space)
    chosen = name(found.best[KEY])
    study = tunesmith.compare(
        plan
        | {
            "arms": {name(ratio): {KEY: ratio} for ratio in RATIOS},
            "baseline": chosen,
            "seeds": list(range(options.seeds)),
            "test": {"rows": str(test)},
            "prompting": [],
            "folder": str(options.folder / "run-out"),
        }
    )
    arms = {arm: row["figures"]["loss"] for arm, row in study.results["arms"].items() if "loss" in row["figures"]}
    order = sorted(arms, key=lambda arm: arms[arm]["value"])
    against = {
        one["arm"]: {key: one[key] for key in ("value", "low", "high", "p_holm")}
        for one in study.results["comparisons"]
        if one["measure"] == "loss"
    }
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
            "rank": order.index(chosen) + 1,
            "lowest": order[0],
            "others_minus_found": against,
            "steps_of_the_search": found.results["steps"],
            "runs_of_the_search": found.results["runs"],
            "trials": [{key: trial[key] for key in ("values", "rungs")} for trial in found.results["trials"]],
            "verdicts": study.verdicts,
        },
    )
    print(
        f"found {chosen} in {found.results['runs']:.2f} runs: number {order.index(chosen) + 1} of {len(order)} run out"
    )
    for arm in order:
        if arm in against:
            one = against[arm]
            print(f"  {arm}: {one['value']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}] to the one found")
    if not options.no_write:
        print(f"written: {result.write().relative_to(REPOSITORY)}", file=sys.stderr)
    return 0


def set_aside(folder: Path) -> tuple[Path, Path]:
    """The rows to train and search on, and a tenth that neither sees, as files."""
    rows = json.loads((SHARED / "instruct" / "alpaca_en.json").read_text())
    random.Random(20).shuffle(rows)
    count = len(rows) // 10
    parts = {"train": rows[count:], "test": rows[:count]}
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for part, own in parts.items():
        (folder / "data" / f"{part}.json").write_text(json.dumps(own))
    return folder / "data" / "train.json", folder / "data" / "test.json"


def name(ratio: float) -> str:
    return f"ratio {ratio}"


if __name__ == "__main__":
    sys.exit(main())
