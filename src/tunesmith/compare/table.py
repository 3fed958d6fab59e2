"""The table of a study as text, for the terminal, Markdown and the page alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.compare.pictures import primary
from tunesmith.compare.verdict import Measure
from tunesmith.progress import seconds, size


def columns(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(titles, rows) of what has a value in any row."""
    measures = [Measure(**one) for one in found["measures"]]
    titles = ["", *(measure.title for measure in measures), "seeds", "learning rate", "forgets", "training"]
    titles += ["evaluating", "tokens/s", "peak memory", "trained weights", "adapter", "price", "with trials"]
    rows = []
    for name, row in found["arms"].items():
        cells = [name, *(_figure(row, measure) for measure in measures), _seeds(row)]
        cells += [_or_nothing(row["learning_rate"], lambda v: f"{v:g}") if row["tuned"] else "", _forgets(row)]
        cells += [_or_nothing(row.get(key), told) for key, told in COSTS]
        rows.append(cells)
    kept = [index for index in range(len(titles)) if index == 0 or any(row[index] for row in rows)]
    return [titles[index] for index in kept], [[row[index] for index in kept] for row in rows]


COSTS = (
    ("train_seconds", seconds),
    ("evaluation_seconds", seconds),
    ("tokens_per_second", lambda value: f"{value:,.0f}"),
    ("peak_memory_bytes", size),
    ("trained_parameters", lambda value: f"{value:,.0f}"),
    ("adapter_bytes", lambda value: size(value) if value >= 1e6 else f"{value / 1e3:.0f} kB"),
    ("price", lambda value: f"{value:.4g}"),
    ("price_with_trials", lambda value: f"{value:.4g}"),
)


def _or_nothing(value: Any, told: Any) -> str:
    return "" if value is None else str(told(value))


def _figure(row: Mapping[str, Any], measure: Measure) -> str:
    figures = row["figures"].get(measure.key)
    if figures is None:
        return "failed" if row["failed"] and row["tuned"] else ""
    told = measure.told(figures["value"])
    if figures["low"] is None or figures["high"] is None:  # one seed
        return told
    return f"{told} {measure.interval(figures['low'], figures['high'])}"


def _seeds(row: Mapping[str, Any]) -> str:
    failed = f" ({len(row['failed'])} failed)" if row["failed"] else ""
    return ("1" if row["seeds"] == [None] else str(len(row["seeds"]))) + failed


def _forgets(row: Mapping[str, Any]) -> str:
    found = row.get("forgetting")
    return "" if not found else f"{found['change']['value']:+.3f}"


def markdown(found: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """The report as Markdown; `pictures` are titles by file."""
    titles, rows = columns(found)
    lines = [f"# {escaped(found['study'])}", "", f"{found['made'][:10]}, baseline {escaped(found['baseline'])}.", ""]
    lines += ["## What can be said", "", *(f"- {escaped(text)}" for text in statements(found)), ""]
    lines += ["## Table", "", legend(found), ""]
    lines += ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
    lines += ["| " + " | ".join(map(escaped, row)) + " |" for row in rows]
    for file, title in pictures.items():
        lines += ["", f"![{title}]({file})"]
    lines += ["", "## Settings that differ", "", *_settings(found), "", "## Made on", "", made_on(found)]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Names as people give them, so that Markdown neither ends a cell nor begins a tag with them."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


def statements(found: Mapping[str, Any]) -> list[str]:
    """The verdicts on what decides, then what the reader must know besides."""
    decisive = [one["verdict"] + "." for one in found["comparisons"] if one["measure"] == found["primary"]]
    best = [found["best"]] if found["best"] else []
    return [*best, *(text[0].upper() + text[1:] for text in decisive), *found["notes"]]


def legend(found: Mapping[str, Any]) -> str:
    measure = primary(found)
    more = " forgets: change of the loss per token on general text." if _any(found, "forgetting") else ""
    return (
        f"Decided by {measure.title}. Brackets: 95 % intervals over seeds and rows. Seconds are means of one run; "
        f"training and evaluation are counted apart.{more}"
    )


def _any(found: Mapping[str, Any], key: str) -> bool:
    return any(row.get(key) for row in found["arms"].values())


def _settings(found: Mapping[str, Any]) -> list[str]:
    names = [name for name, row in found["arms"].items() if row["tuned"]]
    if not found["differences"]:
        return ["None."]
    lines = ["| setting | " + " | ".join(map(escaped, names)) + " |", "|---|" + "---|" * len(names)]
    for setting, values in found["differences"].items():
        lines.append(f"| `{setting}` | " + " | ".join(escaped(shown(values.get(name))) for name in names) + " |")
    return lines


def shown(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def made_on(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpus = "".join(f", {gpu}" for gpu in machine.get("gpus", []))
    return f"{machine['processor']}, {machine['cores']} cores{gpus}; {versions}"
