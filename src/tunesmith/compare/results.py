"""A study's runs as numbers: every row of the table, every comparison with its verdict. All of it is plain JSON."""

from __future__ import annotations

import itertools
import json
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
from tunesmith.compare.grid import differing, prompted
from tunesmith.compare.stats import Difference, difference, estimate, holm
from tunesmith.compare.study import Done, Ran
from tunesmith.compare.verdict import HELD_OUT, LEVEL, LOSS, Measure, best, score, verdict
from tunesmith.score.intervals import wilson

Items = Mapping[int, float]
"""A cell's score by item; one item 0 for a figure of the whole run."""
COSTS = ("train_seconds", "tokens_per_second", "peak_memory_bytes", "trained_parameters", "step", "num_tokens")
ONCE = -1
"""Stands for the seed of what no seed changes."""


def results(ran: Ran) -> dict[str, Any]:
    """Everything that the report shows."""
    study, settings = ran.study, ran.study.settings
    tables = {done.arm: _tables(done_of(ran, done.arm)) for done in ran.done}
    order = [arm.name for arm in ran.plan.arms] + [prompted(shots) for shots in settings.prompting]
    kinds = {recipe.get("objective", {}).get("kind") for recipe in ran.recipes.values()}
    losses = [LOSS, HELD_OUT] if len(kinds) < 2 else []  # of words and of classes: not the same thing
    measures = [*map(score, settings.test.scores), *losses]
    rows = {name: _row(ran, name, tables[name], measures) for name in order if name in tables}
    comparisons = [c for measure in measures for c in _against_baseline(ran.plan.baseline, tables, order, measure)]
    primary = measures[0]
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
        "best": _best([arm.name for arm in ran.plan.arms], tables, primary),
        "notes": _notes(ran, rows),
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


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _tables(cells: Sequence[Done]) -> dict[str, dict[int, Items]]:
    """measure -> seed -> item -> score, of the cells that did not fail."""
    found: dict[str, dict[int, Items]] = {}
    for done in cells:
        if done.failed is not None:
            continue
        seed = ONCE if done.seed is None else done.seed
        measures, summary = _read(done.folder / "measures.json"), _read(done.folder / "summary.json")
        if "loss" in measures:
            loss = measures["loss"]
            mean = sum(loss["weight"]) / len(loss["weight"])
            values = {int(row): value / mean for row, value in zip(loss["rows"], loss["sum"], strict=True)}
            found.setdefault(LOSS.key, {})[seed] = values
        for name, values in measures.get("scores", {}).items():
            found.setdefault(name, {})[seed] = dict(enumerate(values))
        held_out = (summary.get("best_metrics") or {}).get("loss")
        if held_out is not None:
            found.setdefault(HELD_OUT.key, {})[seed] = {0: held_out}
    return found


def paired(ours: Mapping[int, Items], theirs: Mapping[int, Items]) -> tuple[np.ndarray, np.ndarray, list[int]] | None:
    """Two arrays [seeds, items] of the seeds and items that both have, and the items; None where there are none.

    What no seed changes stands beside every seed of the other.
    """
    if ONCE in ours and ONCE in theirs:
        seeds = [(ONCE, ONCE)]
    elif ONCE in ours:
        seeds = [(ONCE, seed) for seed in theirs]
    elif ONCE in theirs:
        seeds = [(seed, ONCE) for seed in ours]
    else:
        seeds = [(seed, seed) for seed in ours if seed in theirs]
    if not seeds:
        return None
    common = set.intersection(*(set(ours[a]) & set(theirs[b]) for a, b in seeds))
    items = sorted(common)
    if not items:
        return None
    left = np.array([[ours[a][item] for item in items] for a, _ in seeds])
    right = np.array([[theirs[b][item] for item in items] for _, b in seeds])
    return left, right, items


def _difference(tables: Mapping[str, Any], ours: str, theirs: str, measure: Measure) -> Difference | None:
    found = paired(tables[ours].get(measure.key, {}), tables[theirs].get(measure.key, {}))
    if found is None:
        return None
    told = difference(found[0], found[1])
    if not measure.points:
        return told
    return replace(told, low=max(-1.0, told.low), high=min(1.0, told.high))  # of two shares; NaN stays one


def _against_baseline(
    baseline: str, tables: Mapping[str, Any], order: Sequence[str], measure: Measure
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


def _wins(tables: Mapping[str, Any], ours: str, theirs: str, measure: Measure) -> dict[str, Any]:
    """Rows on which the mean over the seeds is better, worse, the same."""
    found = paired(tables[ours].get(measure.key, {}), tables[theirs].get(measure.key, {}))
    if found is None:
        return {}
    change = (found[0] - found[1]).mean(axis=0) * (1 if measure.higher_is_better else -1)
    return {
        "won": int((change > 1e-12).sum()),
        "lost": int((change < -1e-12).sum()),
        "same": int((abs(change) <= 1e-12).sum()),
        "change": {str(item): round(float(value), 6) for item, value in zip(found[2], change, strict=True)},
    }


def _best(names: Sequence[str], tables: Mapping[str, Any], measure: Measure) -> str:
    """Over tuned arms; all pairs are corrected together."""
    there = [name for name in names if tables.get(name, {}).get(measure.key)]
    pairs = [(a, b, _difference(tables, a, b, measure)) for a, b in itertools.combinations(there, 2)]
    known = [(a, b, found) for a, b, found in pairs if found is not None]
    adjusted = holm([found.p_value for _, _, found in known])
    beats: dict[tuple[str, str], bool] = {}
    for (a, b, found), p_value in zip(known, adjusted, strict=True):
        if p_value <= LEVEL and found.seeds > 1:
            first = (found.value > 0) == measure.higher_is_better
            beats[(a, b) if first else (b, a)] = True
    means = [_estimate(tables[name][measure.key]).value for name in there]
    return best(there, means, beats, measure)


def _estimate(by_seed: Mapping[int, Items]) -> Any:
    items = sorted(set.intersection(*(set(values) for values in by_seed.values())))
    return estimate([[values[item] for item in items] for values in by_seed.values()])


def _figures(by_seed: Mapping[int, Items], measure: Measure) -> dict[str, Any]:
    """The estimate, and the mean of each seed. Shares stay between 0 and 1; where every row is right, or none, there is
    no noise to see, and Wilson's interval over the rows stands in."""
    found = _estimate(by_seed)
    low, high = found.low, found.high
    if measure.points and low == high and found.value in (0.0, 1.0):
        share = wilson(round(found.value * found.items), found.items)
        low, high = share.low, share.high
    elif math.isfinite(low):  # a share lies between 0 and 1, and no loss is negative
        low, high = max(0.0, low), min(1.0, high) if measure.points else high
    means = {str(seed): float(np.mean(list(values.values()))) for seed, values in by_seed.items()}
    return asdict(found) | {"low": low, "high": high, "by_seed": means}


def _row(ran: Ran, name: str, tables: Mapping[str, Any], measures: Sequence[Measure]) -> dict[str, Any]:
    """One row of the table: figures with intervals, costs as means over the seeds."""
    cells = done_of(ran, name)
    summaries = [_read(done.folder / "summary.json") for done in cells if done.failed is None]
    measured = [_read(done.folder / "measures.json") for done in cells if done.failed is None]
    chosen = ran.chosen.get(name)
    row: dict[str, Any] = {
        "tuned": name in {arm.name for arm in ran.plan.arms},
        "seeds": [done.seed for done in cells if done.failed is None],
        "failed": {str(done.seed): done.failed for done in cells if done.failed is not None},
        "folders": {str(done.seed): os.path.relpath(done.folder, ran.study.folder) for done in cells},
        "figures": {m.key: _figures(tables[m.key], m) for m in measures if tables.get(m.key)},
        "learning_rate": ran.recipes.get(name, {}).get("train", {}).get("learning_rate"),
        "trials": [] if chosen is None else [asdict(trial) for trial in chosen.trials],
        "evaluation_seconds": _mean([_evaluation(s, m) for s, m in zip(summaries, measured, strict=True)]),
        "answers_cut": _mean([m.get("answers_cut") for m in measured]),
    }
    if row["tuned"]:
        row |= {
            key: _mean([summary.get(key) for summary in summaries])
            for key in (
                "train_seconds",
                "tokens_per_second",
                "peak_memory_bytes",
                "trained_parameters",
                "step",
                "num_tokens",
            )
        }
        row["adapter_bytes"] = _mean([_adapter_bytes(done.folder) for done in cells if done.failed is None])
        row["forgetting"] = _forgetting(measured)
        row |= _price(ran, chosen, row["train_seconds"])
    return row


def _mean(values: Sequence[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


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


def _price(ran: Ran, chosen: Any, train_seconds: float | None) -> dict[str, Any]:
    rate = ran.study.settings.price_per_hour
    if rate is None or train_seconds is None:
        return {}
    price = {"price": rate * train_seconds / 3600}
    if chosen is not None:  # a trial of a quarter of the budget is a quarter of a run
        price["price_with_trials"] = price["price"] * (1 + sum(trial.share for trial in chosen.trials))
    return price


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
                summary = _read(done.folder / "summary.json")
                seen[name] = (summary.get("data_digest"), summary.get("step"), summary.get("num_tokens"))
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
    if len({_read(folder / "environment.json").get("commit") for folder in folders} - {None}) > 1:
        notes.append("Cells were made by different versions of Tunesmith; a fresh folder makes them all anew.")
    return notes
