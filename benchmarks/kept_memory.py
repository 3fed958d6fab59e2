"""Seconds, page faults and peak memory of training steps with freed memory kept (src/tunesmith/heap.py) and without.

    python benchmarks/kept_memory.py                 LoRA, and LoRA with embeddings and norms; two rounds of five steps
    python benchmarks/kept_memory.py --rounds 3 --steps 8

The same rows in the same order; with and without take turns, each in a process of its own. The first step warms up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from prepare import REPOSITORY, make_model
from result import Result, load_average, num_cores, warn_if_busy

from tunesmith import heap

CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, embeddings and norms in full": {"train_in_full": ["embeddings", "norms"]},
}
WITHOUT = {"GLIBC_TUNABLES": "", "THP_MEM_ALLOC_ENABLE": "0"}
"""The user's own settings come first: these are the system's defaults."""


def train(case: str, steps: int) -> dict[str, Any]:
    """In this process: what each step took."""
    import resource

    from tunesmith import run
    from tunesmith.events import Event, StepDone
    from tunesmith.recipe import from_dict

    seconds: list[float] = []
    losses: list[float] = []
    faults = [0]

    def hear(event: Event) -> None:
        if isinstance(event, StepDone):
            seconds.append(event.seconds)
            losses.append(event.loss)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

    with tempfile.TemporaryDirectory() as folder:
        recipe = {
            "model": {"name": str(make_model())},
            "data": {
                "train": str(REPOSITORY.parent / "shared/data/instruct/alpaca_en.json"),
                "format": "alpaca",
                "max_length": 512,
            },
            "adapter": {"r": 8, "alpha": 16, "targets": "all-linear", **CASES[case]},
            "train": {"steps": steps + 1, "batch_size": 8},
            "output": {"folder": str(Path(folder) / "run")},
        }
        run.train(from_dict(recipe), listeners=[hear], quiet=True)
    return {
        "seconds": seconds[1:],
        "page_faults": [after - before for before, after in itertools.pairwise(faults[1:])],
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "last_loss": losses[-1],
    }


def alone(case: str, steps: int, kept: bool) -> dict[str, Any]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, __file__, "--part", case, "--steps", str(steps)]
    environment = own if kept else own | WITHOUT
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{case}: {done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def main() -> int:
    heap.keep()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(train(options.part, options.steps)))
        return 0
    before, table = warn_if_busy(), {}
    for case in CASES:
        runs: dict[str, list[dict[str, Any]]] = {"kept": [], "given back": []}
        for _ in range(options.rounds):
            for name, found in runs.items():
                found.append(alone(case, options.steps, name == "kept"))
        for name, found in runs.items():
            row = {
                "seconds_per_step": median(second for one in found for second in one["seconds"]),
                "page_faults_per_step": median(count for one in found for count in one["page_faults"]),
                "peak_rss_bytes": max(one["peak_rss_bytes"] for one in found),
                "last_loss": found[0]["last_loss"],
                "runs": found,
            }
            table[f"{case}, {name}"] = row
            print(
                f"{case}, {name}: {row['seconds_per_step']:.2f} s, {row['page_faults_per_step']:,.0f} page faults, "
                f"{row['peak_rss_bytes'] / 1e9:.2f} GB, last loss {row['last_loss']:.6f}",
                flush=True,
            )
    result = Result(
        benchmark="kept-memory",
        subject="",
        settings={"steps": options.steps, "rounds": options.rounds, "threads": num_cores()},
        load_average={"before": before, "after": load_average()},
        contenders=table,
        ratios={
            case: table[f"{case}, given back"]["seconds_per_step"] / table[f"{case}, kept"]["seconds_per_step"]
            for case in CASES
        },
        measures={},
    )
    if not options.no_write:
        print(f"written: {result.write().name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
