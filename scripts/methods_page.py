"""docs/methods.md, out of the methods' files and the dated results; and what was measured of single methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from against_lora import BASELINE, BETTER, LITTLE, SAME, UNNOTICED, UNSURE, WORSE, Told, deciding, told
from page_parts import MADE, cell, grid, line_of, read
from step_times import AIM, Time, step_times
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import make
from tunesmith.adapters.targets import choose

SAME_AS_LORA = "relora"
"""Between restarts it computes what LoRA does: how far its time is from LoRA's is noise."""
BYTES_LEARNED = 16
"""Of each trained number: itself, its gradient and AdamW's two moments, in fp32."""
NOT_COMPARED, MIXED = "not compared here", "better in one study, worse in another"
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


def verdict(ones: Iterable[Told]) -> str:
    """What the studies say of a method together, by the measure that decides each."""
    kinds = {one.kind for one in deciding(ones)}
    if {BETTER, WORSE} <= kinds:
        return MIXED
    return next((kind for kind in (BETTER, WORSE, SAME, UNSURE) if kind in kinds), NOT_COMPARED)


def judgement(name: str, time: Time | None, ones: Sequence[Told]) -> str:
    """Whether the method earns what it costs, by what was measured here and nothing else; where its quality was not,
    there is none."""
    if name == BASELINE:
        return "it is what the others are measured against."
    said = verdict(ones)
    if said == SAME:
        where = " where anything could be told" if UNSURE in {one.kind for one in deciding(ones)} else ""
        if time is None:
            return f"**nobody will notice the difference**{where}."
        if time.is_dearer:
            return f"**it does not earn its price**: nobody will notice the difference{where}, and a step takes longer."
        took = "; whether a step takes longer, rounds cannot tell" if time.is_dearer is None else ", in no more time"
        return f"**nobody will notice the difference**{where}{took}."
    if said == UNSURE:
        return "**cannot tell**: the intervals are too wide."
    if said == BETTER:
        dearer = time.is_dearer if time is not None else any((one.time or 0) > AIM for one in ones)
        return f"**better**{', in more time: whether that is worth it is yours to say' if dearer else ''}."
    return f"**{said}**."


def methods_page() -> str:
    times, studies = step_times(), told()
    rows = []
    for name in METHODS:
        one, time = facts(name), times.get(name)
        took = "1" if name == BASELINE else "not measured" if time is None else time.in_short
        starts, merges = ("yes" if held else "no" for held in (one.neutral, one.mergeable))
        share = f"{100 * one.trained / one.total:.2f} %"
        said = "" if name == BASELINE else verdict(of(name, studies))
        rows.append([f"[{name}]({name}.md)", f"{one.trained:,}", share, took, said, starts, merges])
    head = ["method", "trained", "of the model", "time of a step", "beside LoRA", "starts as the base", "merges"]
    return "\n".join(
        [
            f"# Methods\n\n{MADE}",
            HEAD,
            grid(head, rows),
            f"{how_measured(times)}\n",
            *[section(name, module, times.get(name), studies) for name, module in METHODS.items()],
        ]
    )


def of(name: str, studies: Sequence[Told]) -> list[Told]:
    """What is told of the method; of LoRA nothing, which is what the others are held against."""
    return [one for one in studies if one.method == one.what == name]


def how_measured(times: Mapping[str, Time]) -> str:
    trained = "numbers that learn in SmolLM2-135M at the method's default settings, counted on its shapes."
    beside = (
        "by studies of `tunesmith compare` in which nothing but the method differs (where learning rates are tried, "
        "each has its best; where all have one, a difference may be that of whom it suits). A difference is measured "
        "against what tuning itself gained there, from the base as it was to LoRA: below "
        f"{100 * UNNOTICED:.0f} % of it nobody will notice, below {100 * LITTLE:.0f} % it is a little. Brackets hold "
        "the interval in which the difference lies with 95 %; above 0 is better. Of several results of one study the "
        "newest counts."
    )
    both = f"**Trained:** {trained}\n\n**Beside LoRA:** {beside}"
    results = read(f"*-methods-{BASELINE}*.json")
    if not results:
        return f"{both}\n\n**Time:** not measured."
    machines = sorted({f"{one['machine']['cpu']}, {one['machine']['cores']} cores" for one in results.values()})
    dates = sorted({one["date"][:10] for one in results.values()})
    text = (
        f"{both}\n\n**Time:** of a step on eight Alpaca rows, LoRA's being 1: the median of rounds in which every "
        "method takes one after the other, and where it lies with 95 %; of the last day on which a method was measured "
        f"(`benchmarks/methods.py`; {', '.join(dates)}; {'; '.join(machines)}; beside other work)."
    )
    same = times.get(SAME_AS_LORA)
    if same is not None:
        text += f" How large the noise is: {SAME_AS_LORA}, between restarts the same as LoRA, took {same.words}."
    return text


def section(name: str, module: ModuleType, time: Time | None, studies: Sequence[Told]) -> str:
    header = (module.__doc__ or "").strip()
    title, _, what = header.partition("\n")[0].rstrip(".").partition(": ")
    own, one = of(name, studies), facts(name)
    took = "that by which the others are measured" if name == BASELINE else "not measured here"
    lines = [
        f"## {title}\n",
        f"{what[0].upper()}{what[1:]}. [Formula and settings]({name}.md).\n",
        f"- **When:** {line_of(header, 'When').rstrip('.')}.",
        f"- **Cost:** {one.trained:,} trained numbers{at_size(module)}{beside_lora(name)}, "
        f"{megabytes(BYTES_LEARNED * one.trained)} with gradients and AdamW's moments.{activations(name)}",
        f"- **Time of a step:** {took if time is None else time.words}.",
        f"- **Laws that cannot hold:** {missing_laws(module, one)}.",
        f"- **Beside LoRA:** {judgement(name, time, own)}",
        *(f"    - {cell(each.words)}" for each in own),
    ]
    variants = [each for each in studies if name == BASELINE == each.method]
    if variants:
        lines.append("- **Other settings of it, beside the same LoRA:**")
        lines += [f"    - {cell(each.what)}: {cell(each.words)}" for each in variants]
    files = sorted({*(() if time is None else time.files), *(each.file for each in (*own, *variants))})
    if files:
        lines.append("- **Raw:** " + ", ".join(f"[{file}](../benchmarks/results/{file})" for file in files) + ".")
    return "\n".join(lines) + "\n"


def at_size(module: ModuleType) -> str:
    settings = module.Settings()
    if hasattr(settings, "r"):
        return f" at rank {settings.r}"
    return f" for {settings.num_tokens} virtual tokens" if hasattr(settings, "num_tokens") else ""


def beside_lora(name: str) -> str:
    share = facts(name).trained / facts(BASELINE).trained
    if name == BASELINE:
        return ""
    if 0.995 < share < 1.05:
        return " (as LoRA)"
    return f" ({share:.2g} of LoRA's)" if share < 1 else f" ({share:.2g} times LoRA's)"


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
