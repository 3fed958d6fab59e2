"""DPO beside TRL's: the same pairs in the same order, the reference counted, losses equal.

    python benchmarks/preference.py                 about fifteen minutes on two cores
    python benchmarks/preference.py --quick         two steps each, to see that it runs

Pairs per second: the pairs of the measured steps over their seconds and their share of what was computed before the
first step. TRL runs at its fastest settings, and as it ships.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from statistics import median
from typing import Any

from contender import IGNORED, Job
from lineup import DPO, OURS
from prepare import SHARED, SHUFFLE_SEED, invented_text, make_model
from result import Result, load_average, num_cores, warn_if_busy
from speed import CACHE, NOISE, RECIPE, final_loss, measured, run_once

MAX_TOKENS = 512
PAIRS_PER_STEP = 4
TARGET = 3.0


def turns(pair: dict[str, Any]) -> tuple[list[dict[str, str]], str, str]:
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    before = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in pair["conversations"]]
    return before, pair["chosen"]["value"], pair["rejected"]["value"]


def source() -> tuple[str, list[tuple[list[dict[str, str]], str, str]]]:
    rng = random.Random(SHUFFLE_SEED)
    path = SHARED / "preference" / "dpo_en_sharegpt.json"
    if path.exists():
        pairs = [turns(pair) for pair in json.loads(path.read_text())]
        rng.shuffle(pairs)
        return "dpo_en_sharegpt.json", pairs
    made = [
        (
            [{"role": "user", "content": invented_text(rng, rng.randint(20, 90))}],
            *(invented_text(rng, rng.randint(15, 150)) for _ in range(2)),
        )
        for _ in range(200)
    ]
    return f"generated (seed {SHUFFLE_SEED})", made


def make_pairs(model: Path) -> Path:
    """Token ids and labels, the chosen row of a pair right before the rejected one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    name, pairs = source()
    rows: list[dict[str, list[int]]] = []
    dropped = 0
    for before, *said in pairs:
        prompt = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
        start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        sides = [start + tokenizer(f"{text}<|im_end|>", add_special_tokens=False)["input_ids"] for text in said]
        if max(map(len, sides)) > MAX_TOKENS or sides[0] == sides[1]:
            dropped += 1
            continue
        rows += [{"input_ids": ids, "labels": [IGNORED] * len(start) + ids[len(start) :]} for ids in sides]
    path = CACHE / "rows-preference.json"
    text = {"name": "preference", "source": name, "rows_per_step": 2 * PAIRS_PER_STEP, "dropped": dropped, "rows": rows}
    path.write_text(json.dumps(text))
    return path


def pairs_per_second(run: dict[str, Any], *, with_reference: bool = True) -> float:
    steps = len(measured(run, "seconds"))
    share = steps / len(run["seconds"])
    before = run["chosen"]["reference_seconds"] * share if with_reference else 0.0
    return PAIRS_PER_STEP * steps / (sum(measured(run, "seconds")) + before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--contenders", default=",".join(DPO))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.warmup, options.repeats = 2, 1, 1
    CACHE.mkdir(exist_ok=True)
    model = make_model()
    rows = make_pairs(model)
    before = warn_if_busy()
    runs: dict[str, list[dict[str, Any]]] = {}
    for round_ in range(options.repeats):
        for name in options.contenders.split(","):
            job = Job(
                contender=name, rows=str(rows), model=str(model), cache=str(CACHE), steps=options.steps,
                warmup_steps=options.warmup, rows_per_step=2 * PAIRS_PER_STEP, threads=options.threads,
                variant=DPO[name].variant, **RECIPE,
            )  # fmt: skip
            answer = run_once(name, job, DPO)
            if answer is not None:
                runs.setdefault(name, []).append(answer)
                print(
                    f"round {round_ + 1}: {name:28} {pairs_per_second(answer):6.3f} pairs/s, without the reference "
                    f"{pairs_per_second(answer, with_reference=False):6.3f}, {answer['peak_rss_bytes'] / 1e9:5.2f} GB, "
                    f"loss {answer['losses'][0]:.4f} -> {final_loss(answer):.4f}",
                    flush=True,
                )
    table = {
        name: {
            "note": DPO[name].note,
            "variant": DPO[name].variant,
            "versions": answers[0]["versions"],
            "pairs_per_second": median(map(pairs_per_second, answers)),
            "pairs_per_second_without_reference": median(pairs_per_second(a, with_reference=False) for a in answers),
            "peak_rss_bytes": max(answer["peak_rss_bytes"] for answer in answers),
            "first_loss": answers[0]["losses"][0],
            "final_loss": median(map(final_loss, answers)),
            "runs": answers,
        }
        for name, answers in runs.items()
    }
    if OURS not in table:
        return 1
    ours = table[OURS]
    ratios = {name: ours["pairs_per_second"] / row["pairs_per_second"] for name, row in table.items() if name != OURS}
    theirs = {name: ratio for name, ratio in ratios.items() if name.startswith("trl")}  # the fastest of them counts
    for name, ratio in ratios.items():
        row = table[name]
        apart = abs(ours["final_loss"] - row["final_loss"]) / row["final_loss"]
        print(
            f"{name:28} ours is {ratio:5.2f} x; without the reference "
            f"{ours['pairs_per_second_without_reference'] / row['pairs_per_second_without_reference']:5.2f} x; memory "
            f"{ours['peak_rss_bytes'] / row['peak_rss_bytes']:.2f}; final losses {apart:.2%} apart"
        )
    if {"tunesmith_fp32", "trl_one_pair_fp32"} <= table.keys():
        pairs = [table[name]["runs"][0]["losses"] for name in ("tunesmith_fp32", "trl_one_pair_fp32")]
        print("losses in fp32, ours and TRL's: " + "  ".join(f"{a:.4f} {b:.4f}" for a, b in zip(*pairs, strict=True)))
    if theirs:
        print(f"against TRL at its fastest: {min(theirs.values()):.2f} x (target {TARGET:.1f} x)")
    result = Result(
        benchmark="preference",
        subject="dpo",
        settings={
            "rows": {key: json.loads(rows.read_text())[key] for key in ("source", "dropped")},
            "pairs_per_step": PAIRS_PER_STEP, "max_tokens": MAX_TOKENS, "beta": 0.1, "steps": options.steps,
            "warmup_steps": options.warmup, "repeats": options.repeats, "threads": options.threads, "noise": NOISE,
            **RECIPE,
        },
        load_average={"before": before, "after": load_average()},
        contenders=table,
        ratios=ratios,
        measures={"target": TARGET, "against_trl_at_its_fastest": min(theirs.values(), default=None)},
    )  # fmt: skip
    if not options.no_write:
        print(f"written: {result.write().name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
