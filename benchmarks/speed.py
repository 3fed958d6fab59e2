"""Training speed against the rivals: same rows, same order, same recipe, one process at a time, interleaved.

    python benchmarks/speed.py                      everything, about an hour on two cores
    python benchmarks/speed.py --quick              two steps each, to see that it runs
    python benchmarks/speed.py --data alpaca --contenders tunesmith,peft_trl_unpadded --steps 20 --repeats 3
    python benchmarks/speed.py --data alpaca --method dora

What each number means stands in `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from contender import Job
from environments import environment
from lineup import BEST_OF, CONTENDERS, DEFAULT_CONTENDERS, METHODS, OURS, TARGETS, Contender
from prepare import DATA_SETS, REPOSITORY, describe, make_model, make_rows
from products import useful_flops
from result import HERE, Result, load_average, num_cores, warn_if_busy

NAME = "SmolLM2-135M-Instruct"
CACHE = HERE / ".cache"
NOISE = 0.01
"""Final losses that differ by less than this share count as equal: two seeds of one contender differ by as much."""
RECIPE: dict[str, Any] = {"rank": 8, "alpha": 16, "learning_rate": 2e-4, "seed": 0}
MEMORY_TARGET = 0.6
"""Our peak resident memory over PEFT+TRL's, at most."""


def busy_seconds() -> float:
    """Processor seconds that the whole machine has spent working (user, nice, system, interrupts); 0 off Linux."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq = (int(value) for value in fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def last_answer(text: str) -> dict[str, Any] | None:
    for line in reversed(text.splitlines()):
        if line.startswith("{") and '"contender"' in line:
            return json.loads(line)
    return None


def run_once(name: str, job: Job, lineup: dict[str, Contender] = CONTENDERS) -> dict[str, Any] | None:
    """One contender, one process. Its answer, with the share of the machine that others used meanwhile."""
    contender = lineup[name]
    python = environment(contender.rival) if contender.rival else Path(sys.executable)
    job_path, log_path = CACHE / f"job-{name}.json", CACHE / f"log-{name}.txt"
    job.write(job_path)
    threads = str(job.threads)
    settings = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    before, own, started = busy_seconds(), own_seconds(), time.perf_counter()
    command = [str(python), "-m", contender.module, str(job_path)]
    done = subprocess.run(command, cwd=HERE, env=settings, capture_output=True, text=True)
    elapsed = time.perf_counter() - started
    log_path.write_text(done.stdout + "\n--- stderr ---\n" + done.stderr)
    answer = last_answer(done.stdout)
    if done.returncode or answer is None:
        tail = (done.stderr or done.stdout).strip().splitlines()[-3:]
        print(f"{name} failed ({log_path.relative_to(REPOSITORY)}):\n  " + "\n  ".join(tail), flush=True)
        return None
    others = (busy_seconds() - before) - (own_seconds() - own)
    answer["others_cpu_share"] = round(max(0.0, others) / elapsed / num_cores(), 4)
    answer["wall_seconds"] = elapsed
    return answer


def measured(run: dict[str, Any], key: str) -> list[Any]:
    return run[key][run["warmup_steps"] :]


def tokens_per_second(run: dict[str, Any]) -> float:
    """Real (non-padding) tokens of the measured steps over their seconds."""
    return sum(measured(run, "tokens")) / sum(measured(run, "seconds"))


def final_loss(run: dict[str, Any]) -> float:
    """Mean loss per learned token over the last half of the measured steps: one step alone is mostly its rows."""
    losses, learned = measured(run, "losses"), measured(run, "learned_tokens")
    half = len(losses) // 2
    weighted = sum(loss * n for loss, n in zip(losses[half:], learned[half:], strict=True))
    return weighted / sum(learned[half:])


def summary(name: str, runs: list[dict[str, Any]], flops_per_token: float, products: float) -> dict[str, Any]:
    rate = median(tokens_per_second(run) for run in runs)
    return {
        "note": CONTENDERS[name].note,
        "variant": CONTENDERS[name].variant,
        "versions": runs[0]["versions"],
        "tokens_per_second": rate,
        "seconds_per_step": median(s for run in runs for s in measured(run, "seconds")),
        "warmup_seconds": [run["seconds"][: run["warmup_steps"]] for run in runs],
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs),
        "training_peak_rss_bytes": max(run["training_peak_rss_bytes"] or 0 for run in runs),
        "first_loss": runs[0]["losses"][0],
        "final_loss": median(final_loss(run) for run in runs),
        "smallest_grad_norm": min(norm for run in runs for norm in run["grad_norms"]),
        "useful_share_of_products": rate * flops_per_token / products,
        "others_cpu_share": max(run["others_cpu_share"] for run in runs),
        "trainable_parameters": runs[0]["trainable_parameters"],
        "runs": runs,
    }


def against(ours: dict[str, Any], rival: dict[str, Any]) -> dict[str, Any]:
    """Ours beside one rival: speed by round, memory, and whether both learned the same."""
    rounds = [tokens_per_second(a) / tokens_per_second(b) for a, b in zip(ours["runs"], rival["runs"], strict=False)]
    apart = abs(ours["final_loss"] - rival["final_loss"]) / rival["final_loss"]
    return {
        "speed": ours["tokens_per_second"] / rival["tokens_per_second"],
        "speed_by_round": rounds,
        "memory_share": ours["peak_rss_bytes"] / rival["peak_rss_bytes"],
        "first_loss_apart": abs(ours["first_loss"] - rival["first_loss"]) / rival["first_loss"],
        "final_loss_apart": apart,
        "losses_equal_within_noise": apart <= NOISE,
    }


def fastest_settings(table: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Of each rival measured at several settings, the fastest one."""
    measured_of = {best: [name for name in names if name in table] for best, names in BEST_OF.items()}
    return {
        best: max(names, key=lambda name: table[name]["tokens_per_second"])
        for best, names in measured_of.items()
        if names
    }


def print_table(data: str, table: dict[str, dict[str, Any]], result: Result) -> None:
    reference = result.measures["reference"]
    print(f"\n{data}, {result.settings['method']}: {reference} against each")
    print(f"(speed: how many times as fast; memory: {reference}'s share of theirs)")
    head = f"{'contender':32}{'tok/s':>8}{'speed':>8}{'peak GB':>9}{'memory':>8}{'loss':>9}{'apart':>8}"
    print(head + f"{'useful':>8}{'others':>8}")
    for name, row in table.items():
        versus = result.measures["against"].get(name)
        cells = [
            f"{name:32}{row['tokens_per_second']:8.1f}",
            f"{versus['speed']:7.2f}x" if versus else f"{'':8}",
            f"{row['peak_rss_bytes'] / 1e9:9.2f}",
            f"{versus['memory_share']:8.2f}" if versus else f"{'':8}",
            f"{row['final_loss']:9.4f}",
            f"{versus['final_loss_apart']:8.2%}" if versus else f"{'':8}",
            f"{row['useful_share_of_products']:8.1%}",
            f"{row['others_cpu_share']:8.1%}",
        ]
        print("".join(cells))
    print_verdicts(result)


def print_verdicts(result: Result) -> None:
    for name, versus in result.measures["against"].items():
        if not versus["losses_equal_within_noise"]:
            print(f"warning: {name} ends at another loss ({versus['final_loss_apart']:.2%} apart): ratio is not valid")
    for best, name in result.measures["best_of"].items():
        if best in result.ratios:
            target = result.measures["targets"]["speed"].get(best)
            aim = f" (target {target:.1f}x)" if target else ""
            memory = result.measures["against"][name]["memory_share"]
            print(f"{best}: {result.ratios[best]:.2f}x{aim}, at its fastest: {name}; memory {memory:.2f} of it")
    rates = result.measures["product_rates"]
    print(
        f"products on the model's shapes: bf16 {rates['bfloat16']['flop_per_second'] / 1e9:.0f} GFLOP/s, "
        f"fp32 {rates['float32']['flop_per_second'] / 1e9:.0f}; "
        f"useful work {result.measures['useful_flops_per_token'] / 1e9:.3f} GFLOP per token"
    )


def product_rates(model: Path, threads: int) -> dict[str, Any]:
    """Measured in a process of its own, under the same number of threads as the contenders."""
    settings = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, str(HERE / "products.py"), str(model), str(threads)]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def benchmark(data: str, model: Path, options: argparse.Namespace) -> bool:
    """Measure one data set, print its table, write its file. True when every contender answered."""
    rows = make_rows(data, model, CACHE)
    rows_per_step = json.loads(rows.read_text())["rows_per_step"]
    print(*describe(rows, options.warmup + options.steps), sep="\n", flush=True)
    before = warn_if_busy()
    rates = product_rates(model, options.threads)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.contenders}
    jobs: dict[str, Job] = {}
    for round_ in range(options.repeats):
        for name in options.contenders:
            variant = CONTENDERS[name].variant
            if "micro_batch_rows" in variant:
                variant = variant | {"micro_batch_rows": min(variant["micro_batch_rows"], rows_per_step)}
            jobs[name] = Job(
                contender=name,
                rows=str(rows),
                model=str(model),
                cache=str(CACHE),
                steps=options.steps,
                warmup_steps=options.warmup,
                rows_per_step=rows_per_step,
                threads=options.threads,
                variant=variant,
                method=options.method,
                **RECIPE,
            )
            answer = run_once(name, jobs[name])
            if answer is None:
                continue
            runs[name].append(answer)
            print(
                f"round {round_ + 1} of {options.repeats}: {name:32} {tokens_per_second(answer):7.1f} tok/s, "
                f"{answer['peak_rss_bytes'] / 1e9:.2f} GB, loss {answer['losses'][0]:.4f} -> {final_loss(answer):.4f}",
                flush=True,
            )
    result = collect(data, model, options, runs, rates, before, rows)
    if result is None:
        return False
    print_table(data, result.contenders, result)
    if not options.no_write:
        print(f"written: {result.write().relative_to(REPOSITORY)}")
    return all(len(answers) == options.repeats for answers in runs.values())


def collect(
    data: str,
    model: Path,
    options: argparse.Namespace,
    runs: dict[str, list[dict[str, Any]]],
    rates: dict[str, Any],
    before: list[float],
    rows: Path,
) -> Result | None:
    answered = {name: answers for name, answers in runs.items() if answers}
    if not answered:
        return None
    prepared = json.loads(rows.read_text())
    first = next(iter(answered.values()))[0]
    skip = first["warmup_steps"] * prepared["rows_per_step"]
    lengths = [
        len(row["input_ids"]) for row in prepared["rows"][skip : skip + options.steps * prepared["rows_per_step"]]
    ]
    config = json.loads((model / "config.json").read_text())
    flops = useful_flops(config, lengths, sum(measured(first, "learned_tokens")))
    per_token = sum(flops.values()) / sum(lengths)
    products = max(rate["flop_per_second"] for rate in rates.values())
    table = {name: summary(name, answers, per_token, products) for name, answers in answered.items()}
    reference = OURS if OURS in table else next(iter(table))
    versus = {name: against(table[reference], row) for name, row in table.items() if name != reference}
    best_of = fastest_settings(table)
    ratios = {name: versus[name]["speed"] for name in versus if name.endswith("_defaults")}
    ratios |= {best: versus[name]["speed"] for best, name in best_of.items() if name in versus}
    return Result(
        benchmark="speed",
        subject=data if options.method == "lora" else f"{data}-{options.method}",
        settings={
            "method": options.method,
            "model": NAME if options.model is None else model.name,
            "rows": {key: prepared[key] for key in ("name", "source", "rows_per_step", "dropped")},
            "targets": "all linears of the blocks",
            "dropout": 0.0,
            "schedule": "constant, no warm-up",
            "optimizer": "AdamW, betas 0.9 0.999, no weight decay, no clipping",
            "steps": options.steps,
            "warmup_steps": options.warmup,
            "repeats": options.repeats,
            "threads": options.threads,
            "noise": NOISE,
            **RECIPE,
        },
        load_average={"before": before, "after": load_average()},
        contenders=table,
        ratios=ratios,
        measures={
            "reference": reference,
            "against": versus,
            "best_of": best_of,
            "targets": {"speed": TARGETS.get((data, options.method), {}), "memory_share": MEMORY_TARGET},
            "product_rates": rates,
            "useful_flops": flops,
            "useful_flops_per_token": per_token,
        },
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="alpaca,documents", help=f"of {', '.join(DATA_SETS)}")
    parser.add_argument("--method", default="lora", choices=METHODS, help="what everyone trains (lora)")
    parser.add_argument("--contenders", help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--steps", type=int, default=8, help="measured optimizer steps of a run")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them, reported apart")
    parser.add_argument("--repeats", type=int, default=2, help="rounds in which every contender runs once")
    parser.add_argument("--threads", type=int, default=num_cores(), help="threads of every contender")
    parser.add_argument("--model", type=Path, help="folder of the model (default: SmolLM2-135M-Instruct, made once)")
    parser.add_argument("--quick", action="store_true", help="one warm-up step, two steps, one round")
    parser.add_argument("--no-write", action="store_true", help="print only, write no result file")
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.warmup, options.repeats = 2, 1, 1
    options.contenders = options.contenders or ",".join(DEFAULT_CONTENDERS[options.method])
    if options.method != "lora" and "litgpt" in options.contenders:
        parser.error(f"--contenders: LitGPT has no {options.method}")
    for key, known in (("data", DATA_SETS), ("contenders", CONTENDERS)):
        names = [name.strip() for name in getattr(options, key).split(",")]
        unknown = [name for name in names if name not in known]
        if unknown:
            parser.error(f"--{key}: {', '.join(unknown)} is none of {', '.join(known)}")
        setattr(options, key, names)
    return options


def main() -> int:
    options = parse()
    CACHE.mkdir(exist_ok=True)
    model = options.model.resolve() if options.model else make_model()
    for rival in {CONTENDERS[name].rival for name in options.contenders}:
        if rival:
            environment(rival)
    complete = [benchmark(data, model, options) for data in options.data]
    return 0 if all(complete) else 1


if __name__ == "__main__":
    sys.exit(main())
