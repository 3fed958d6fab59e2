"""GRPO beside TRL's: the same prompts, as many completions of the same length, a reward that costs nothing.

    python benchmarks/policy.py              about ten minutes on two cores
    python benchmarks/policy.py --quick      one step each after one, to see that it runs

Steps per second, sampling counted. What is sampled differs, so losses cannot be held against each other: gradients and
losses are TRL's own by tests/objectives.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from contender import IGNORED, Job
from lineup import GRPO, OURS
from prepare import alpaca_pairs, make_model
from result import Result, load_average, num_cores, warn_if_busy
from speed import CACHE, RECIPE, measured, run_once

PROMPTS_PER_STEP, COMPLETIONS, NEW_TOKENS = 4, 8, 32
TARGET = 2.5


def make_prompts(model: Path) -> Path:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    source, pairs = alpaca_pairs()
    rows = []
    for text, _ in pairs[:200]:
        turns = [{"role": "user", "content": text}]
        written = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(written, add_special_tokens=False)["input_ids"]
        rows.append({"input_ids": ids, "labels": [IGNORED] * len(ids), "text": text})
    path = CACHE / "rows-policy.json"
    path.write_text(json.dumps({"source": source, "rows": rows}))
    return path


def steps_per_second(run: dict[str, Any]) -> float:
    return len(measured(run, "seconds")) / sum(measured(run, "seconds"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--contenders", default=",".join(GRPO))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.steps = 1
    CACHE.mkdir(exist_ok=True)
    model = make_model()
    rows = make_prompts(model)
    before = warn_if_busy()
    table: dict[str, dict[str, Any]] = {}
    for name in options.contenders.split(","):
        job = Job(
            contender=name,
            rows=str(rows),
            model=str(model),
            cache=str(CACHE),
            steps=options.steps,
            warmup_steps=options.warmup,
            rows_per_step=PROMPTS_PER_STEP,
            threads=options.threads,
            variant=GRPO[name].variant | {"num_generations": COMPLETIONS, "new_tokens": NEW_TOKENS},
            **RECIPE,
        )
        answer = run_once(name, job, GRPO)
        if answer is not None:
            rate = median([steps_per_second(answer)])
            table[name] = {
                "note": GRPO[name].note,
                "variant": job.variant,
                "versions": answer["versions"],
                "steps_per_second": rate,
                "peak_rss_bytes": answer["peak_rss_bytes"],
                "runs": [answer],
            }
            print(f"{name:24} {rate:6.3f} steps/s, {answer['peak_rss_bytes'] / 1e9:5.2f} GB", flush=True)
    if OURS not in table:
        return 1
    ours = table[OURS]["steps_per_second"]
    ratios = {name: ours / row["steps_per_second"] for name, row in table.items() if name != OURS}
    for name, ratio in ratios.items():
        print(f"{name:24} ours is {ratio:5.2f} x")
    if ratios:
        print(f"against TRL at its fastest: {min(ratios.values()):.2f} x (target {TARGET:.1f} x)")
    result = Result(
        benchmark="policy",
        subject="grpo",
        settings={
            "prompts_per_step": PROMPTS_PER_STEP,
            "num_generations": COMPLETIONS,
            "new_tokens": NEW_TOKENS,
            "steps": options.steps,
            "warmup_steps": options.warmup,
            "threads": options.threads,
            **RECIPE,
        },
        load_average={"before": before, "after": load_average()},
        contenders=table,
        ratios=ratios,
        measures={"target": TARGET},
    )
    if not options.no_write:
        print(f"written: {result.write().name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
