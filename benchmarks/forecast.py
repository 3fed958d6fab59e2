"""Memory and time as `tunesmith plan` forecasts them against what runs take: 28 configurations, half of them fitted.

    python benchmarks/forecast.py                      all, some 20 minutes on two cores
    python benchmarks/forecast.py --only lora,full     those whose names hold one of these
    python benchmarks/forecast.py --fit                also says which numbers would fit best (plan/memory.py)
    python benchmarks/forecast.py --measured FILE      forecasts anew, beside what an earlier result measured here
    python benchmarks/forecast.py --again FILE         an earlier result with the plan's numbers of today, nothing run

Each configuration is planned and then trained for four steps, in two processes of its own. Every row has the length
that its name says, so that the run meets the largest micro-batch that the plan saw. Numbers in the plan are to be
fitted to the configurations of odd number alone; the error of the even ones is what a user can expect.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from prepare import WORDS, make_model
from result import Result, load_average, warn_if_busy

from tunesmith import heap

STEPS, ROWS = 4, 16


@dataclass(frozen=True)
class Shape:
    """A random model: transformers' model type, and what its config says beside the vocabulary."""

    kind: str
    config: dict[str, Any]


def llama(kind: str, hidden: int, middle: int, blocks: int, **more: Any) -> Shape:
    config = {"hidden_size": hidden, "intermediate_size": middle, "num_hidden_layers": blocks}
    config |= {"num_attention_heads": hidden // 64, "num_key_value_heads": max(1, hidden // 256), "head_dim": 64}
    return Shape(kind, config | {"tie_word_embeddings": True} | more)


SHAPES = {
    "wide": llama("llama", 2048, 5632, 6),
    "deep": llama("qwen3", 384, 1024, 48),
    "capped": llama("gemma2", 1024, 4096, 8, query_pre_attn_scalar=64, sliding_window=4096),
    "gpt2": Shape("gpt2", {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 2048}),
    "bloom": Shape("bloom", {"hidden_size": 1024, "n_layer": 8, "n_head": 16}),
}


@dataclass(frozen=True)
class Case:
    model: str
    length: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Of an optimizer step."""
        return 4 if self.length <= 512 else 2

    @property
    def name(self) -> str:
        words = [f"{key.rpartition('.')[2]}={value}" for key, value in self.settings.items()]
        return ", ".join([self.model, f"{self.length} tokens", *words])


CASES = [
    Case("smollm2", 512),
    Case("smollm2", 1024, {"adapter.r": 64}),
    Case("smollm2", 512, {"adapter.method": "dora"}),
    Case("smollm2", 256, {"adapter.method": "full"}),
    Case("smollm2", 512, {"model.storage": "nf4"}),
    Case("smollm2", 1024, {"model.storage": "int8"}),
    Case("smollm2", 1024, {"train.recompute": True}),
    Case("smollm2", 512, {"adapter.method": "ia3"}),
    Case("smollm2", 256, {"adapter.method": "vera"}),
    Case("smollm2", 1024, {"adapter.method": "lora-fa"}),
    Case("smollm2", 512, {"adapter.method": "prefix"}),
    Case("smollm2", 512, {"adapter.last_blocks": 6}),
    Case("smollm2", 512, {"model.dtype": "float32"}),
    Case("smollm2", 4096),
    Case("smollm2", 512, {"adapter.train_in_full": ["embeddings"]}),
    Case("smollm2", 2048, {"train.micro_batch_tokens": 4096}),
    Case("wide", 512),
    Case("wide", 256, {"adapter.method": "full"}),
    Case("wide", 1024, {"model.storage": "nf4"}),
    Case("wide", 1024, {"adapter.method": "dora", "train.recompute": True}),
    Case("wide", 1024, {"adapter.method": "delta-lora", "adapter.start_step": 1}),
    Case("wide", 512, {"adapter.method": "full", "train.optimizer": "adamw-8bit"}),
    Case("deep", 512),
    Case("deep", 1024, {"adapter.method": "bottleneck"}),
    Case("gpt2", 512),
    Case("gpt2", 1024, {"adapter.method": "full"}),
    Case("capped", 512),
    Case("bloom", 256),
]


def model_of(name: str, cache: Path) -> Path:
    """The folder of a model; a random one borrows the small one's tokenizer."""
    small = make_model()
    if name == "smollm2":
        return small
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = cache / name
    if not (folder / "config.json").is_file():
        shape, tokenizer = SHAPES[name], AutoTokenizer.from_pretrained(small)
        torch.manual_seed(0)
        ids = {"pad_token_id": 2, "eos_token_id": 2, "bos_token_id": 1}
        config = AutoConfig.for_model(shape.kind, vocab_size=len(tokenizer), dtype="bfloat16", **ids, **shape.config)
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def rows_of(length: int, cache: Path) -> Path:
    """Texts that fill `length` tokens and are cut there."""
    path, draw = cache / f"rows-{length}.jsonl", random.Random(length)
    texts = (" ".join(draw.choices(WORDS, k=2 * length)) for _ in range(ROWS))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def resolved(case: Case, cache: Path) -> Any:
    """The recipe of a case."""
    from tunesmith.recipe import from_dict

    tree: dict[str, dict[str, Any]] = {
        "model": {"name": str(model_of(case.model, cache))},
        "data": {"train": str(rows_of(case.length, cache)), "max_length": case.length, "overlong": "truncate"},
        "train": {"steps": STEPS, "batch_size": case.rows, "memory_forecast": "off"},
        "output": {"folder": str(cache / "run")},
    }
    for key, value in case.settings.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    return from_dict(tree)


def forecast(case: Case, cache: Path) -> dict[str, Any]:
    """In this process: what the plan says."""
    from tunesmith import run
    from tunesmith.plan.main import plan
    from tunesmith.progress import Progress

    of = resolved(case, cache)
    with Progress(quiet=True) as progress:
        tokenizer, prepared = run.read_rows(of.recipe, False, progress)
        objective = run.built(of.recipe, prepared)
        made = plan(of, tokenizer, prepared, objective, progress, methods=False, remedies=False)
    trial, pace = made.need.trial, made.pace
    share, batches = case.rows * case.length / trial.tokens, -(-case.rows * case.length // trial.tokens)
    return {
        "memory": made.need.memory,
        "seconds": made.need.step_seconds,
        "base": made.memory.held,
        "ideal": [
            trial.work.flops * share / pace.rate,
            trial.work.moved * share / pace.bandwidth,
            trial.work.operations * batches,
        ],
        "factor": pace.factor,
        "parts": asdict(trial.parts),
    }


def measure(case: Case, cache: Path) -> dict[str, Any]:
    """In this process: what a run takes."""
    from tunesmith import run
    from tunesmith.events import Event, StepDone

    told: list[StepDone] = []

    def hear(event: Event) -> None:
        if isinstance(event, StepDone):
            told.append(event)

    run.train(resolved(case, cache), listeners=[hear], quiet=True)
    return {"memory": told[-1].memory_bytes, "seconds": median(step.seconds for step in told[1:])}


def alone(what: str, number: int, cache: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--part", what, str(number), "--cache", str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{CASES[number].name}: {done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def fit(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What would fit the odd cases best: k and c of plan/memory.py."""
    import numpy as np

    odd = [found[case.name] for number, case in enumerate(CASES, 1) if number % 2 and case.name in found]
    lasting = np.array([sum(one["forecast"]["parts"][key] for key in LASTING) for one in odd])
    passing = np.array([one["forecast"]["parts"]["peak"] for one in odd]) - lasting
    there = np.array([one["forecast"]["base"] for one in odd]) + lasting
    all_of_it = np.array([one["measured"]["memory"] for one in odd])
    sides = np.stack([passing, np.ones(len(odd))], 1) / all_of_it[:, None]
    spread, fixed = np.linalg.lstsq(sides, (all_of_it - there) / all_of_it, rcond=None)[0]
    return {"spread": spread, "fixed": fixed}


def again(told: dict[str, Any]) -> dict[str, Any]:
    """An earlier forecast by the numbers that the plan has now."""
    from tunesmith.plan.memory import needed
    from tunesmith.plan.speed import Pace
    from tunesmith.plan.step import Parts

    products, moved, operations = told["ideal"]
    seconds = told["factor"] * (Pace.product * products + Pace.moving * moved + Pace.operation * operations)
    return {**told, "memory": needed(Parts(**told["parts"]), "cpu", told["base"]), "seconds": seconds}


def earlier_load(result: Path) -> dict[str, list[float]]:
    """How busy the machine was while the measurements were made."""
    told: dict[str, list[float]] = json.loads(result.read_text())["load_average"]
    return told


LASTING = ("weights", "adapter", "gradients", "optimizer")


def main() -> int:
    heap.keep()  # as the command line does, before torch makes its first tensor
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--measured", type=Path)
    parser.add_argument("--again", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        what, number = options.part
        part = forecast if what == "forecast" else measure
        with tempfile.TemporaryDirectory() as folder:
            case = CASES[int(number)]
            model_of(case.model, options.cache)
            link = Path(folder)
            for name in SHAPES:
                if (options.cache / name).is_dir():
                    (link / name).symlink_to(options.cache / name)
            print(json.dumps(part(case, link)))
        return 0
    before = warn_if_busy()
    words = [word for word in options.only.split(",") if word]
    found: dict[str, dict[str, Any]] = {}
    result_before = options.again or options.measured
    earlier = json.loads(result_before.read_text())["contenders"] if result_before else {}
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        print(f"{'':>2} {'configuration':<48}{'forecast':>10}{'measured':>10}{'off':>8}{'time off':>10}")
        for number, case in enumerate(CASES):
            if words and not any(word in case.name for word in words):
                continue
            there = earlier.get(case.name, {})
            both = {
                "forecast": again(there["forecast"]) if options.again else alone("forecast", number, cache),
                "measured": there.get("measured") or alone("measure", number, cache),
            }
            off = {key: both["forecast"][key] / both["measured"][key] - 1 for key in both["measured"]}
            found[case.name] = {**both, "off": off, "fitted": number % 2 == 0}
            sizes = [f"{both[side]['memory'] / 1e6:,.0f} MB" for side in ("forecast", "measured")]
            apart = f"{off['memory']:>+8.1%}" + (f"{off['seconds']:>+10.0%}" if "seconds" in off else "")
            print(f"{number + 1:>2} {case.name:<48}{sizes[0]:>10}{sizes[1]:>10}{apart}", flush=True)
    measures: dict[str, Any] = {}
    for kind, fitted in (("fitted", True), ("not fitted", False)):
        offs = [one["off"] for one in found.values() if one["fitted"] is fitted]
        if offs:
            memory = [off["memory"] for off in offs]
            measures[kind] = {
                "configurations": len(offs),
                "memory_most_under": min(memory),
                "memory_most_over": max(memory),
                "memory_within_10_percent": sum(abs(off) <= 0.1 for off in memory),
                "memory_median_off": median(map(abs, memory)),
            }
            if times := [abs(off["seconds"]) for off in offs if "seconds" in off]:
                measures[kind] |= {"time_median_off": median(times), "time_most_off": max(times)}
            print(kind, json.dumps(measures[kind]))
    if options.fit:
        print("best for the odd ones:", json.dumps(fit(found)))
    if not options.no_write:
        result = Result(
            "forecast",
            "memory-and-time",
            {"steps": STEPS, "rows_a_step": {case.name: case.rows for case in CASES}},
            {"before": before, "after": load_average()} if not earlier else earlier_load(result_before),
            found,
            {},
            measures,
        )
        print(f"result: {result.write()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
