"""docs/methods.md, out of the methods' files and the dated results; and what was measured of single methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from page_parts import MADE, cell, grid, line_of, read
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import make
from tunesmith.adapters.targets import choose

BASELINE = "lora"
AIM = 1.08
"""Times LoRA's step that a method may take and still count as no dearer."""
SAME_AS_LORA = "relora"
"""Between restarts it computes what LoRA does: how far its time is from LoRA's is noise."""
BYTES_LEARNED = 16
"""Of each trained number: itself, its gradient and AdamW's two moments, in fp32."""
SMOLLM2_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}

HEAD = """\
Which method is worth it on *your* rows, [`tunesmith compare`](compare.md) answers: several seeds, the same rows in the
same order, and a verdict that may be "cannot tell". Here stands what each method is, what it costs, and what was
measured of it in this repository, on a small model and a processor. What was not measured is said to be so; what papers
promise is left to the papers.
"""


@dataclass(frozen=True)
class Facts:
    """One method at its default settings on SmolLM2-135M."""

    trained: int
    total: int
    neutral: bool
    mergeable: bool


@cache
def small_model() -> PreTrainedModel:
    """SmolLM2-135M's shapes, without its numbers."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(LlamaConfig(**SMOLLM2_135M))


@cache
def facts(name: str) -> Facts:
    model, settings = small_model(), METHODS[name].Settings()  # type: ignore[attr-defined]
    made = make(model, settings, name="counted", seed=None, targets=choose(model, settings), token_rows={})
    adapters, counts = made.adapters.values(), made.counts()
    return Facts(
        counts.trained, counts.total, all(one.neutral for one in adapters), all(one.mergeable for one in adapters)
    )


def step_times() -> dict[str, dict[str, float]]:
    """method -> result file -> its step's time over LoRA's; of the last day on which the method was measured."""
    found: dict[str, dict[str, float]] = {}
    for file, result in read(f"*-methods-{BASELINE}*.json").items():
        for name, ratio in result["ratios"].items():
            found.setdefault(name, {})[file] = ratio
    last = {name: max(file[:10] for file in files) for name, files in found.items()}
    return {
        name: {file: ratio for file, ratio in files.items() if file.startswith(last[name])}
        for name, files in found.items()
    }


def noise(times: Mapping[str, Mapping[str, float]]) -> float:
    return max((abs(ratio - 1) for ratio in times.get(SAME_AS_LORA, {}).values()), default=0.0)


@dataclass(frozen=True)
class Told:
    """What a study's report says of one arm against its baseline."""

    method: str
    study: str
    date: str
    file: str
    verdict: str
    is_better: bool


def told_by(file: str, study: Mapping[str, Any]) -> list[Told]:
    """The verdicts of a study (its results.json) on what it tuned, where that stands against LoRA."""
    directions = {one["key"]: one["higher_is_better"] for one in study["measures"]}
    everywhere = study["recipe"].get("adapter", {}).get("method", BASELINE)
    methods = study["differences"].get("adapter.method", {})
    found = []
    for one in study["comparisons"]:
        method, baseline = (methods.get(one[key], everywhere) for key in ("arm", "baseline"))
        if baseline == BASELINE and study["arms"][one["arm"]]["tuned"]:
            better = bool(one["differs"]) and (one["value"] > 0) == directions[one["measure"]]
            said = f"by {one['measure']}, {one['verdict']}"
            found.append(Told(method, study["study"], study["made"][:10], file, said, better))
    return found


def price(name: str, ratios: Sequence[float], told: Sequence[Told], unsure: float, numbers: float) -> str:
    """Whether the method earns what it costs, by what was measured here and nothing else.

    `numbers`: its trained numbers over LoRA's. `unsure`: how far one ratio may be from the truth.
    """
    if name == BASELINE:
        return "It is what the others are measured against."
    better = any(one.is_better for one in told)
    if better:
        quality = "A study found it better than LoRA."
    elif told:
        quality = "No study here found it better than LoRA."
    else:
        quality = "Whether it learns more or less than LoRA: not measured here."
    if not ratios:
        return f"Time of a step: not measured here. {quality}"
    low, high, once = min(ratios), max(ratios), len(ratios) == 1
    cost = (
        f"A step takes {span(low, high)} of LoRA's time ({'1 measurement' if once else f'{len(ratios)} measurements'})."
    )
    if low <= AIM:
        if high >= 1 - unsure:
            return f"{cost} That is LoRA's, within the noise. {quality}"
        return f"{cost} {'One alone proves little. ' if once else 'It is cheaper than LoRA. '}{quality}"
    if better:
        return f"{cost} {quality} Whether that is worth the time is yours to say."
    size = f"; what it buys is size, {numbers:.2f} of LoRA's trained numbers" if numbers < 0.5 else ""
    by = "By that one measurement" if once else "By what we measured"
    return f"{cost} {quality} **{by} it does not earn its price**{size}."


def span(low: float, high: float) -> str:
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"


def methods_page() -> str:
    times = step_times()
    told = [one for file, study in read("*-study-*.json").items() for one in told_by(file, study)]
    unsure = noise(times)
    rows = []
    for name in METHODS:
        one, ratios = facts(name), list(times.get(name, {}).values())
        time = "1" if name == BASELINE else span(min(ratios), max(ratios)) if ratios else "not measured"
        starts, merges = ("yes" if held else "no" for held in (one.neutral, one.mergeable))
        share = f"{100 * one.trained / one.total:.2f} %"
        rows.append([f"[{name}]({name}.md)", f"{one.trained:,}", share, time, starts, merges])
    head = ["method", "trained", "of the model", "time of a step, LoRA's = 1", "starts as the base", "merges"]
    return "\n".join(
        [
            f"# Methods\n\n{MADE}",
            HEAD,
            grid(head, rows),
            "Trained: numbers that learn in SmolLM2-135M at the method's default settings, counted on its shapes. "
            f"{how_measured(times, unsure)}\n",
            *[section(name, module, times, told, unsure) for name, module in METHODS.items()],
        ]
    )


def how_measured(times: Mapping[str, Mapping[str, float]], unsure: float) -> str:
    results = read(f"*-methods-{BASELINE}*.json")
    if not results:
        return "Time: not measured."
    machines = sorted({f"{one['machine']['cpu']}, {one['machine']['cores']} cores" for one in results.values()})
    dates = sorted({one["date"][:10] for one in results.values()})
    text = (
        f"Time: median over rounds of a step on eight Alpaca rows, methods taken in turn (`benchmarks/methods.py`; "
        f"{', '.join(dates)}; {'; '.join(machines)}; beside other work)."
    )
    same = times.get(SAME_AS_LORA, {}).values()
    if same:
        text += (
            f" **How large the noise is:** {SAME_AS_LORA}, which between restarts computes what LoRA does, took "
            f"{span(min(same), max(same))} of LoRA's time: a single figure is sure to about {100 * unsure:.0f} %."
        )
    return text


def section(
    name: str, module: ModuleType, times: Mapping[str, Mapping[str, float]], told: Sequence[Told], unsure: float
) -> str:
    header = (module.__doc__ or "").strip()
    title, _, what = header.partition("\n")[0].rstrip(".").partition(": ")
    own, one, taken = [each for each in told if each.method == name], facts(name), times.get(name, {})
    numbers = one.trained / facts(BASELINE).trained
    lines = [
        f"## {title}\n",
        f"{what[0].upper()}{what[1:]}. [Formula and settings]({name}.md).\n",
        f"- **When:** {line_of(header, 'When').rstrip('.')}.",
        f"- **Cost:** {one.trained:,} trained numbers{at_size(module)}, {megabytes(BYTES_LEARNED * one.trained)} with "
        f"gradients and AdamW's moments.{activations(name)}",
        f"- **Laws that cannot hold:** {missing_laws(module, one)}.",
        f"- **Measured:** {price(name, list(taken.values()), own, unsure, numbers)}",
    ]
    lines += [f"    - {each.study}, {each.date}: {cell(each.verdict)}." for each in own]
    files = sorted({*taken, *(each.file for each in own)})
    if files:
        lines.append("- **Raw:** " + ", ".join(f"[{file}](../benchmarks/results/{file})" for file in files) + ".")
    return "\n".join(lines) + "\n"


def at_size(module: ModuleType) -> str:
    settings = module.Settings()
    if hasattr(settings, "r"):
        return f" at rank {settings.r}"
    return f" for {settings.num_tokens} virtual tokens" if hasattr(settings, "num_tokens") else ""


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def missing_laws(module: ModuleType, one: Facts) -> str:
    missing = []
    if not one.neutral:
        missing.append("the neutral start (its first forward is not the base's)")
    if not one.mergeable:
        missing.append(f"the merge ({getattr(module, 'UNMERGEABLE', 'no weight computes the same')})")
    return "; ".join(missing) or "none"


def newest_memory() -> tuple[str, dict[str, Any]] | None:
    results = read("*-lora-fa-memory-*.json")
    return next(reversed(results.items()), None)


def activations(name: str) -> str:
    """The bytes that a step keeps for its backward pass, where they were counted."""
    newest = newest_memory()
    if newest is None or name not in newest[1]["contenders"]:
        return " Memory of activations: not measured here."
    length = str(max(newest[1]["settings"]["lengths"]))
    kinds = newest[1]["contenders"][name][length]
    return (
        f" Activations kept for {int(length):,} tokens in {newest[1]['settings']['dtype']}: "
        f"{megabytes(kinds['plain']['held_bytes'])}, {megabytes(kinds['recompute']['held_bytes'])} with recomputation "
        f"([counted](lora-fa.md#what-it-saves))."
    )
