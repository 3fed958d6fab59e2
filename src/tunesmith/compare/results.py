"""A study's runs as numbers: every row of the table, every comparison with its verdict. All of it is plain JSON."""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith import machine
from tunesmith.card import public
from tunesmith.compare.grid import differing
from tunesmith.compare.pairing import Items, Measured, is_loss, measured_of, read, side_by_side
from tunesmith.compare.stats import Difference, Estimate, difference, estimate, holm
from tunesmith.compare.study import Done, Ran
from tunesmith.compare.verdict import LEVEL, Measure, best, verdict
from tunesmith.score.intervals import wilson

COSTS = (
    *("train_seconds", "preparing_seconds", "tokens_per_second", "peak_memory_bytes"),
    *("trained_parameters", "step", "num_tokens"),
)
"""Of a run's summary, what an arm's row shows the mean of."""


def results(ran: Ran) -> dict[str, Any]:
    """Everything that the report shows."""
    study, settings = ran.study, ran.study.settings
    tables = {done.arm: measured_of(done_of(ran, done.arm), ran.recipes.get(done.arm, {})) for done in ran.done}
    order = list(dict.fromkeys([*(arm.name for arm in ran.plan.arms), *(done.arm for done in ran.done)]))
    measures = ran.plan.measures
    rows = {name: _row(ran, name, tables[name], measures) for name in order if name in tables}
    comparisons = [c for measure in measures for c in _against_baseline(ran.plan.baseline, tables, order, measure)]
    primary = measures[0]
    apart = _apart(ran.plan.baseline, {name: tables[name] for name in rows}, measures)
    return {
        "study": study.name,
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "source": Path(study.source).name,
        "settings": _public(settings.model_dump(mode="json")),
        "measures": [asdict(measure) for measure in measures],
        "primary": primary.key,
        "baseline": ran.plan.baseline,
        "arms": rows,
        "comparisons": comparisons,
        "apart": apart,
        "best": _best([arm.name for arm in ran.plan.arms], tables, primary),
        "notes": [
            *_uncompared(ran.plan.baseline, rows),
            *_units(ran.plan.baseline, apart, tables, measures),
            *_notes(ran, rows),
        ],
        "differences": _public(differing(ran.recipes)) if len(ran.recipes) > 1 else {},
        "recipe": _public(ran.recipes.get(ran.plan.baseline, {})),
        "machine": machine.describe(),
    }


def _public(value: Any) -> Any:
    """Of absolute paths the last part: a report is read by strangers."""
    if isinstance(value, dict):
        return {key: _public(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_public(inner) for inner in value]
    return public(value) if isinstance(value, str) else value


def done_of(ran: Ran, arm: str) -> list[Done]:
    return [done for done in ran.done if done.arm == arm]


def _difference(tables: Mapping[str, Measured], ours: str, theirs: str, measure: Measure) -> Difference | None:
    found = side_by_side(tables[ours], tables[theirs], measure)
    if found is None:
        return None
    left, right, _ = found
    told = difference(left[:, 0], right[:, 0]) if measure.of_runs else difference(left, right)
    if not measure.points:
        return told
    return replace(told, low=max(-1.0, told.low), high=min(1.0, told.high))  # of two shares; NaN stays one


def _apart(baseline: str, tables: Mapping[str, Measured], measures: Sequence[Measure]) -> dict[str, list[str]]:
    """measure -> arms whose figure is in another unit than the baseline's; of measures of which there are such."""
    own = tables[baseline]
    odd = {
        measure.key: [
            name for name, one in tables.items() if measure.key in one.scores and not own.is_like(one, measure)
        ]
        for measure in measures
        if measure.key in own.scores
    }
    return {key: names for key, names in odd.items() if names}


def _against_baseline(
    baseline: str, tables: Mapping[str, Measured], order: Sequence[str], measure: Measure
) -> list[dict[str, Any]]:
    pairs = [(name, _difference(tables, name, baseline, measure)) for name in order if name != baseline]
    known = [(name, found) for name, found in pairs if found is not None]
    adjusted = holm([found.p_value for _, found in known])
    told = []
    for (name, found), p_value in zip(known, adjusted, strict=True):
        words = verdict(name, baseline, measure, found, p_value, len(known))
        wins = _wins(tables, name, baseline, measure)
        told.append(
            {"measure": measure.key, "arm": name, "baseline": baseline, **asdict(found), "p_holm": p_value}
            | {"differs": found.seeds > 1 and p_value <= LEVEL, "verdict": words, "rows": wins}
        )
    return told


def _wins(tables: Mapping[str, Measured], ours: str, theirs: str, measure: Measure) -> dict[str, Any]:
    """Rows on which the mean over the seeds is better, worse, the same."""
    found = side_by_side(tables[ours], tables[theirs], measure)
    if found is None:
        return {}
    change = (found[0] - found[1]).mean(axis=0) * (1 if measure.higher_is_better else -1)
    return {
        "won": int((change > 1e-12).sum()),
        "lost": int((change < -1e-12).sum()),
        "same": int((abs(change) <= 1e-12).sum()),
        "change": {str(item): round(float(value), 6) for item, value in zip(found[2], change, strict=True)},
    }


def _best(names: Sequence[str], tables: Mapping[str, Measured], measure: Measure) -> str:
    """Over tuned arms; all pairs are corrected together."""
    there = [name for name in names if name in tables and measure.key in tables[name].scores]
    if any(not tables[a].is_like(tables[b], measure) for a, b in itertools.combinations(there, 2)):
        return f"No winner by {measure.title}: that of some arms is in another unit."
    pairs = [(a, b, _difference(tables, a, b, measure)) for a, b in itertools.combinations(there, 2)]
    known = [(a, b, found) for a, b, found in pairs if found is not None]
    adjusted = holm([found.p_value for _, _, found in known])
    beats: dict[tuple[str, str], bool] = {}
    for (a, b, found), p_value in zip(known, adjusted, strict=True):
        if p_value <= LEVEL and found.seeds > 1:
            first = (found.value > 0) == measure.higher_is_better
            beats[(a, b) if first else (b, a)] = True
    means = [_estimate(tables[name].by_seed(measure), measure).value for name in there]
    return best(there, means, beats, measure)


def _estimate(by_seed: Mapping[int, Items], measure: Measure) -> Estimate:
    items = sorted(set.intersection(*(set(values) for values in by_seed.values())))
    if measure.of_runs:
        return estimate([values[0] for values in by_seed.values()])
    return estimate([[values[item] for item in items] for values in by_seed.values()])


def _figures(by_seed: Mapping[int, Items], measure: Measure) -> dict[str, Any]:
    """The estimate, and the mean of each seed. Shares stay between 0 and 1; where every row is right, or none, there is
    no noise to see, and Wilson's interval over the rows stands in."""
    found = _estimate(by_seed, measure)
    low, high = found.low, found.high
    if measure.points and low == high and found.value in (0.0, 1.0) and found.items is not None:
        share = wilson(round(found.value * found.items), found.items)
        low, high = share.low, share.high
    elif math.isfinite(low) and (measure.points or (is_loss(measure) and found.value >= 0)):
        low, high = max(0.0, low), min(1.0, high) if measure.points else high  # hardly any loss is negative
    means = {str(seed): float(np.mean(list(values.values()))) for seed, values in by_seed.items()}
    return asdict(found) | {"low": low, "high": high, "by_seed": means}


def _row(ran: Ran, name: str, own: Measured, measures: Sequence[Measure]) -> dict[str, Any]:
    """One row of the table: figures with intervals, costs as means over the seeds."""
    cells = done_of(ran, name)
    summaries = [_charged(read(done.folder / "summary.json")) for done in cells if done.failed is None]
    measured = [read(done.folder / "measures.json") for done in cells if done.failed is None]
    chosen = ran.chosen.get(name)
    row: dict[str, Any] = {
        "tuned": name in {arm.name for arm in ran.plan.arms},
        "seeds": [done.seed for done in cells if done.failed is None],
        "failed": {str(done.seed): done.failed for done in cells if done.failed is not None},
        "folders": {str(done.seed): os.path.relpath(done.folder, ran.study.folder) for done in cells},
        "figures": {m.key: _figures(own.by_seed(m), m) for m in measures if m.key in own.scores},
        "learning_rate": ran.recipes.get(name, {}).get("train", {}).get("learning_rate"),
        "trials": [] if chosen is None else [asdict(trial) for trial in chosen.trials],
        "evaluation_seconds": _mean([_evaluation(s, m) for s, m in zip(summaries, measured, strict=True)]),
        "answers_cut": _mean([m.get("answers_cut") for m in measured]),
    }
    if row["tuned"]:
        row |= {key: _mean([summary.get(key) for summary in summaries]) for key in COSTS}
        row["adapter_bytes"] = _mean([_adapter_bytes(done.folder) for done in cells if done.failed is None])
        row["forgetting"] = _forgetting(measured)
        row |= _price(ran, chosen, row["train_seconds"], row["preparing_seconds"] or 0.0)
    return row


def _mean(values: Sequence[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _charged(summary: dict[str, Any]) -> dict[str, Any]:
    """A cell's summary with what was computed before the first step (stored states, features and their fit) counted
    among the seconds of training."""
    seconds = summary.get("train_seconds")
    return summary if seconds is None else {**summary, "train_seconds": seconds + summary.get("preparing_seconds", 0.0)}


def _evaluation(summary: Mapping[str, Any], measures: Mapping[str, Any]) -> float:
    """Seconds of every kind of evaluation of one cell: held-out while training, loss and answers on the test."""
    return float(summary.get("evaluation_seconds") or 0.0) + sum(measures.get("seconds", {}).values())


def _adapter_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in (folder / "adapter").glob("*.safetensors"))


def _forgetting(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Loss per token on general text, before and after, paired by text."""
    found = [one["forget"] for one in measured if one.get("forget")]
    if not found:
        return None
    tables: dict[str, list[list[float]]] = {"before": [], "after": []}
    for one in found:
        mean = sum(one["before"]["weight"]) / len(one["before"]["weight"])
        for when, table in tables.items():
            table.append([value / mean for value in one[when]["sum"]])
    change = difference(tables["after"], tables["before"])
    before = float(np.mean(tables["before"]))
    return {"before": before, "after": before + change.value, "change": asdict(change)}


def _price(ran: Ran, chosen: Any, train_seconds: float | None, preparing: float) -> dict[str, Any]:
    rate = ran.study.settings.price_per_hour
    if rate is None or train_seconds is None:
        return {}
    price = {"price": rate * train_seconds / 3600}
    if chosen is not None:  # a trial of a quarter of the budget is a quarter of a run, what comes before it done once
        shares = sum(trial.share for trial in chosen.trials)
        price["price_with_trials"] = price["price"] + rate * shares * (train_seconds - preparing) / 3600
    return price


def _uncompared(baseline: str, rows: Mapping[str, Any]) -> list[str]:
    """Why an arm that should stand beside the baseline does not."""
    own = rows[baseline]
    if not own["seeds"]:
        why = next(iter(own["failed"].values())).splitlines()[0]
        return [f"Nothing was compared with {baseline}, the baseline: it failed on every seed ({why})."]
    alone = [
        name
        for name, row in rows.items()
        if row["tuned"] and row["seeds"] and not set(row["seeds"]) & set(own["seeds"])
    ]
    return [f"{name} was not compared with {baseline}, the baseline: no seed was finished of both." for name in alone]


def _units(
    baseline: str, apart: Mapping[str, Sequence[str]], tables: Mapping[str, Measured], measures: Sequence[Measure]
) -> list[str]:
    """Why there is no verdict by a measure between the baseline and some arms."""
    notes = []
    for measure in measures:
        names = apart.get(measure.key, ())
        judged = [name for name in names if not tables[baseline].is_judged_like(tables[name], measure)]
        read_otherwise = [name for name in names if name not in judged]
        if judged:
            notes.append(
                f"No verdict by {measure.title} between {baseline} and {', '.join(judged)}: settings of the objective "
                "differ that decide what it means, so the two figures are not of one thing."
            )
        if read_otherwise:
            notes.append(
                f"No verdict by {measure.title} between {baseline} and {', '.join(read_otherwise)}: the same rows do "
                "not become as many learned tokens, or are not known to (another tokenizer, template or format), and a "
                "loss per token is then in another unit. A score (test.score) compares them."
            )
    return notes


def _is_written(recipe: Mapping[str, Any]) -> bool:
    """Whether the model writes what it learns from: how long that is, is its own doing."""
    objective = recipe.get("objective", {})
    return objective.get("kind") == "policy" or objective.get("answers") == "sampled"


def _notes(ran: Ran, rows: Mapping[str, Any]) -> list[str]:
    """What the reader of the table must know besides."""
    notes = []
    for name, row in rows.items():
        notes += [f"{name}, seed {seed}, failed: {why.splitlines()[0]}" for seed, why in row["failed"].items()]
    tuned = [name for name, row in rows.items() if row["tuned"]]
    unlike: dict[str, Any] = {}
    for seed in ran.study.settings.seeds:
        seen = {}
        for name in tuned:
            done = next((d for d in done_of(ran, name) if d.seed == seed and d.failed is None), None)
            if done is not None:
                summary = read(done.folder / "summary.json")
                tokens = None if _is_written(ran.recipes.get(name, {})) else summary.get("num_tokens")
                seen[name] = (summary.get("data_digest"), summary.get("step"), tokens)
        unlike |= {name: values for name, values in seen.items() if values != next(iter(seen.values()))}
    if unlike:
        notes.append(
            "Not the same rows, steps or tokens for every arm: "
            + ", ".join(unlike)
            + " saw others than the first arm. Differences are not of the method alone."
        )
    if len(ran.study.settings.seeds) < 3:
        count = len(ran.study.settings.seeds)
        why = (
            "nothing is known of the next" if count == 1 else "the interval of two is so wide that even large ones hide"
        )
        notes.append(
            f"{count} seed{'s' if count > 1 else ''}: too few to tell differences ({why}); three, better five."
        )
    for name, chosen in ran.chosen.items():
        if chosen is not None and chosen.at_the_edge:
            notes.append(f"{name}: the best learning rate, {chosen.learning_rate:g}, lies at an end of the grid.")
    cut = [f"{name} {row['answers_cut']:.0f}" for name, row in rows.items() if row["answers_cut"]]
    if cut:
        notes.append(f"Answers that met the limit of tokens (test.max_new_tokens): {'; '.join(cut)}.")
    folders = [ran.study.folder / folder for row in rows.values() if row["tuned"] for folder in row["folders"].values()]
    if len({read(folder / "environment.json").get("commit") for folder in folders} - {None}) > 1:
        notes.append("Cells were made by different versions of Tunesmith; a fresh folder makes them all anew.")
    return notes
