"""The report as one HTML page that needs nothing else: pictures inside, no script, no address outside."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tunesmith.compare.pictures import primary
from tunesmith.compare.table import columns, legend, made_on, shown, statements
from tunesmith.notation import write
from tunesmith.pages import bullets, document, table

NUM_SAMPLES, NUM_ROWS = 6, 8
LONGEST = 700


def page(found: Mapping[str, Any], folder: Path, pictures: Mapping[str, bytes], titles: Mapping[str, str]) -> str:
    """The whole page of the study in `folder`; `pictures` are PNGs by name, `titles` what stands above them."""
    sections = [
        f"<h1>{escape(found['study'])}</h1>",
        f"<p class='small'>{escape(found['made'][:16].replace('T', ' '))}, baseline {escape(found['baseline'])}</p>",
        "<h2>What can be said</h2>",
        bullets(statements(found)),
        "<h2>Table</h2>",
        f"<p class='small'>{escape(legend(found))}</p>",
        table(*columns(found)),
    ]
    for name, picture in pictures.items():
        data = base64.b64encode(picture).decode()
        title = escape(titles[name])
        sections += [f"<h2>{title}</h2>", f"<img alt='{title}' src='data:image/png;base64,{data}'>"]
    sections += [_comparisons(found), _items(found, folder), _samples(found, folder), _trials(found), _settings(found)]
    body = "\n".join(section for section in sections if section)
    return document(found["study"], body)


def _comparisons(found: Mapping[str, Any]) -> str:
    """Every measure's paired differences to the baseline, with both p-values."""
    titles = ["", "by", "difference", "95 % interval", "p", "p (Holm)", "rows better", "rows worse", "seeds"]
    rows = []
    for one in found["comparisons"]:
        low, high = one["low"], one["high"]
        interval = "unknown" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"
        cells = [one["arm"], one["measure"], f"{one['value']:+.4f}", interval, f"{one['p_value']:.3g}"]
        cells += [f"{one['p_holm']:.3g}", str(one["rows"]["won"]), str(one["rows"]["lost"]), str(one["seeds"])]
        rows.append(cells)
    if not rows:
        return ""
    text = f"Each less {found['baseline']}, on the same rows and seeds."
    return f"<h2>Differences to the baseline</h2><p class='small'>{escape(text)}</p>" + table(titles, rows)


def _answers(row: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The answers of an arm's first seed that did not fail."""
    for run in row["folders"].values():
        path = folder / run / "answers.jsonl"
        if path.is_file():
            with path.open(encoding="utf-8") as lines:  # `splitlines` would cut at U+2028 and its like, inside a text
                return [json.loads(line) for line in lines]
    return []


def _items(found: Mapping[str, Any], folder: Path) -> str:
    """For each arm, the rows that it won and lost against the baseline by the most."""
    measure = primary(found)
    questions = _answers(found["arms"][found["baseline"]], folder)
    parts = []
    for one in found["comparisons"]:
        change = one["rows"].get("change", {}) if one["measure"] == measure.key else {}
        order = sorted(change, key=lambda item: change[item])
        for title, chosen in (("worse", order[:NUM_ROWS]), ("better", order[::-1][:NUM_ROWS])):
            rows = [
                [f"{change[item]:+.2f}", _question(questions, int(item))]
                for item in chosen
                if (change[item] < 0) == (title == "worse") and change[item] != 0
            ]
            if rows:
                said = f"{one['arm']}: rows it answers {title} than {found['baseline']}"
                inner = table([measure.title, "row"], rows, "text")
                parts.append(f"<details><summary>{escape(said)}</summary>{inner}</details>")
    return "<h2>Rows won and lost</h2>" + "".join(parts) if parts else ""


def _question(questions: Sequence[Mapping[str, Any]], item: int) -> str:
    if item < len(questions):
        return f"{item + 1}: {_cut(questions[item]['question'])}"
    return f"row {item}"


def _cut(text: Any) -> str:
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def _samples(found: Mapping[str, Any], folder: Path) -> str:
    """The same questions, every arm's answer side by side; those on which the arms differ come first."""
    answers = {name: _answers(row, folder) for name, row in found["arms"].items()}
    answers = {name: own for name, own in answers.items() if own}
    if not answers:
        return ""
    count = min(map(len, answers.values()))
    key = found["primary"] if found["primary"] != "loss" else ""
    spread = {i: len({own[i]["scores"].get(key) for own in answers.values()}) for i in range(count)}
    chosen = sorted(range(count), key=lambda i: (-spread[i], i))[:NUM_SAMPLES]
    first = next(iter(answers.values()))
    rows = []
    for index in sorted(chosen):
        cells = [_cut(first[index]["question"]), _cut(first[index]["gold"])]
        for own in answers.values():
            scores = ", ".join(f"{name} {value:g}" for name, value in own[index]["scores"].items())
            cells.append(f"{_cut(own[index]['answer'])}\n({scores})")
        rows.append(cells)
    note = "<p class='small'>Of each arm's first seed. Rows on which scores differ come first.</p>"
    return "<h2>Answers side by side</h2>" + note + table(["question", "right answer", *answers], rows, "text")


def _trials(found: Mapping[str, Any]) -> str:
    rows = []
    for name, row in found["arms"].items():
        for trial in row["trials"]:
            loss = "failed" if trial["loss"] is None else f"{trial['loss']:.4f}"
            rows.append([name, str(trial["round"] + 1), f"{trial['learning_rate']:g}", f"{trial['share']:g}", loss])
    if not rows:
        return ""
    titles = ["", "round", "learning rate", "share of the budget", "held-out loss"]
    return "<h2>Learning rates tried</h2>" + table(titles, rows)


def _settings(found: Mapping[str, Any]) -> str:
    names = [name for name, row in found["arms"].items() if row["tuned"]]
    rows = [[key, *(shown(values.get(name)) for name in names)] for key, values in found["differences"].items()]
    parts = ["<h2>Settings that differ</h2>"]
    parts.append(table(["", *names], rows) if rows else "<p>None.</p>")
    recipe = {section: values for section, values in found["recipe"].items() if section != "output"}
    said = f"the whole recipe of {found['baseline']}"
    parts.append(f"<details><summary>{escape(said)}</summary><pre>{escape(write(recipe))}</pre></details>")
    study = escape(write(found["settings"]))
    parts.append(f"<details><summary>the study's settings</summary><pre>{study}</pre></details>")
    folders = [[name, seed, Path(f).name] for name, row in found["arms"].items() for seed, f in row["folders"].items()]
    inner = table(["", "seed", "folder"], folders)
    parts.append(f"<details><summary>the folder of every run</summary>{inner}</details>")
    parts.append(f"<p class='small'>{escape(made_on(found))}</p>")
    return "\n".join(parts)
