"""What a search found: results.json, report.md, search.png, best.yaml, confirm.yaml; and the table in the terminal."""

from __future__ import annotations

import io
import math
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunesmith.atomic import finite, write_file, write_json
from tunesmith.compare.grid import resolve
from tunesmith.notation import write, write_inline
from tunesmith.plot import BLUE, FAINT, GREEN, INK, ORANGE
from tunesmith.search.space import Range, at_an_end
from tunesmith.search.trials import Searched, said


def results(searched: Searched) -> dict[str, Any]:
    """Everything as plain values; trials from the best to the worst."""
    plan, best = searched.plan, searched.best
    trials = [
        {
            "number": trial.number,
            "values": trial.values,
            "own": trial.is_own,
            "step": trial.step,
            "rungs": [list(pair) for pair in trial.rungs],
            "losses": {str(step): loss for step, loss in trial.losses.items()},
            "failed": trial.failed,
            "folder": str(trial.cell.folder),
        }
        for trial in sorted(searched.trials, key=lambda trial: trial.order)
    ]
    space = {
        key: domain.model_dump() if isinstance(domain, Range) else list(domain) for key, domain in plan.space.items()
    }
    found: dict[str, Any] = finite(
        {
            "search": searched.search.name,
            "space": space,
            "num_steps": plan.num_steps,
            "budget_steps": plan.budget,
            "steps": searched.steps,
            "runs": searched.steps / plan.num_steps,
            "kept_rows": plan.kept.test,
            "best": None if best is None else best.values,
            "at_an_end": [] if best is None else at_an_end(plan.space, best.values),
            "trials": trials,
        }
    )
    return found | {"words": words(searched)}


def words(searched: Searched) -> list[str]:
    """What can be said, in sentences."""
    plan, best = searched.plan, searched.best
    spent = f"{searched.steps} steps, {searched.steps / plan.num_steps:.2f} runs of {plan.num_steps}"
    if best is None:
        return [f"every trial failed ({spent})"]
    step, loss = best.rungs[-1]
    told = [f"{best.title}: held-out loss {loss:.4f} after step {step}, the lowest found ({spent})"]
    own = next((trial for trial in searched.trials if trial.is_own), None)
    if best.is_own:
        told.append("these are the recipe's own settings: nothing better was found")
    elif own is not None:
        last = max((s for s, _ in own.rungs if math.isfinite(own.loss_at(s))), default=None)
        if last is None:
            told.append(f"the recipe's own, {own.title}, failed: {(own.failed or 'no loss').splitlines()[0]}")
        else:
            told.append(
                f"the recipe's own, {own.title}: {own.loss_at(last):.4f} after step {last}, "
                f"where the one above had {best.loss_at(last):.4f}"
            )
    for key in at_an_end(plan.space, best.values):
        name = key.rpartition(".")[2]
        told.append(f"{name} {write_inline(best.values[key])} is at an end of what was tried: better may lie beyond")
    if searched.study is not None:
        told.append("one seed chose, at a part of the run: confirm.yaml asks several whether it is more than noise")
    elif searched.unconfirmed is not None:
        told.append(
            "one seed chose, at a part of the run: it may be noise, and there is no study that would ask "
            f"({searched.unconfirmed})"
        )
    return told


def write_report(searched: Searched) -> dict[str, Path]:
    """Everything into the search's folder; returns the files by kind."""
    folder, best = searched.search.folder, searched.best
    found = results(searched)
    files = {"json": folder / "results.json", "markdown": folder / "report.md", "picture": folder / "search.png"}
    write_json(files["json"], found)
    write_file(files["picture"], draw(searched))
    write_file(files["markdown"], _markdown(found, searched))
    if best is not None:
        recipe = resolve(searched.search, best.cell.arm).recipe.explicit()
        recipe.pop("output", None)
        files["best"] = folder / "best.yaml"
        write_file(files["best"], f"# {said(best.values)}: found by tunesmith search\n" + write(recipe))
    if searched.study is not None:
        files["confirm"] = folder / "confirm.yaml"
        write_file(files["confirm"], searched.study)
    else:
        (folder / "confirm.yaml").unlink(missing_ok=True)  # of an earlier finding
    return files


def _rows(searched: Searched) -> tuple[list[str], list[list[str]]]:
    steps = sorted({step for trial in searched.trials for step, _ in trial.rungs})
    if len(steps) > 4:
        steps = []
    titles = [key.rpartition(".")[2] for key in searched.plan.space]
    titles += [f"step {step}" for step in steps] or ["held-out loss"]
    rows = []
    for trial in sorted(searched.trials, key=lambda trial: trial.order):
        at = dict(trial.rungs)
        last = trial.rungs[-1][1] if trial.rungs else math.inf
        cells = [_loss(at.get(step)) for step in steps] or [_loss(last)]
        why = "recipe's own" if trial.is_own else ""
        if trial.failed is not None:
            why = "failed: " + trial.failed.splitlines()[0]
        rows.append([*(write_inline(value) for value in trial.values.values()), *cells, str(trial.step), why])
    return [*titles, "steps", ""], rows


def _loss(value: float | None) -> str:
    return "" if value is None else "none" if not math.isfinite(value) else f"{value:.4f}"


def _markdown(found: dict[str, Any], searched: Searched) -> str:
    titles, rows = _rows(searched)
    lines = [f"# {found['search']}", "", *(f"- {text}" for text in found["words"]), ""]
    lines += ["| " + " | ".join(titles) + " |", "|" + "---:|" * len(titles)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*lines, "", "Held-out loss at each rung.", "", "![losses](search.png)", ""])


def show(searched: Searched, files: dict[str, Path], console: Console) -> None:
    """The table, the words, and what to type next."""
    titles, rows = _rows(searched)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title=searched.search.name, title_justify="left")
    for title in titles:
        table.add_column(Text(title), justify="right" if title else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print()
    console.print(table)
    console.print()
    for text in words(searched):
        console.print(Text(f"  {text}"))
    console.print()
    console.print(Text(f"report: {files['markdown']}    picture: {files['picture']}"), soft_wrap=True)
    if searched.best is not None:
        _next(searched, files, console)


def _next(searched: Searched, files: dict[str, Path], console: Console) -> None:
    assert searched.best is not None
    console.print("\n[bold]Next[/]")
    folder = shlex.quote(str(searched.best.cell.folder))
    if searched.best.step < searched.plan.num_steps:
        lines = [f"tunesmith train {folder} --resume    # the rest of the best trial's run"]
    else:
        lines = [f"tunesmith evaluate {folder}"]
    rows = "the same" if searched.plan.kept.train is None else "the same settings, on all rows,"
    lines.append(f"tunesmith train {shlex.quote(str(files['best']))}    # {rows} from the start")
    if "confirm" in files:
        lines.append(f"tunesmith compare {shlex.quote(str(files['confirm']))}    # is it more than noise?")
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)


def draw(searched: Searched) -> bytes:
    """PNG: every trial's held-out loss by step, the best in colour; and each setting's values with their first loss."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    space = searched.plan.space
    figure = Figure(figsize=(5.4 + 3.0 * len(space), 3.8), dpi=150, layout="constrained", facecolor="white")
    axes, *others = figure.subplots(1, 1 + len(space), width_ratios=[1.7] + [1] * len(space), squeeze=False)[0]
    for own in (axes, *others):
        own.spines[["top", "right"]].set_visible(False)
        own.spines[["left", "bottom"]].set_color(FAINT)
        own.tick_params(colors=INK, labelsize=8.5)
        own.grid(axis="y", color="#e6e9ed", linewidth=0.8)
        own.set_axisbelow(True)
    best = searched.best
    for trial in sorted(searched.trials, key=lambda trial: trial is best):
        losses = trial.losses
        colour, width = (GREEN, 2.0) if trial is best else (ORANGE, 1.6) if trial.is_own else (BLUE, 1.0)
        label = f"best: {trial.title}" if trial is best else "the recipe's own" if trial.is_own else None
        shade = 1.0 if label else 0.45
        axes.plot(list(losses), list(losses.values()), "o-", color=colour, linewidth=width, markersize=3.5,
                  alpha=shade, label=label)  # fmt: skip
    axes.set_xlabel("step", fontsize=9, color=INK)
    axes.set_title("Held-out loss of each trial", loc="left", fontsize=10, color=INK, fontweight="bold")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)
    for own, (key, domain) in zip(others, space.items(), strict=True):
        _draw_setting(own, key, domain, searched)
    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw_setting(axes: Any, key: str, domain: tuple[Any, ...] | Range, searched: Searched) -> None:
    ranged = isinstance(domain, Range)
    for trial in searched.trials:
        if not trial.rungs or not math.isfinite(trial.rungs[0][1]):
            continue
        value = trial.values[key]
        x = value if isinstance(domain, Range) else domain.index(value)
        colour = GREEN if trial is searched.best else ORANGE if trial.is_own else BLUE
        axes.plot([x], [trial.rungs[0][1]], "o", color=colour, markersize=6, alpha=0.85)
    if not ranged:
        axes.set_xticks(range(len(domain)), [write_inline(value) for value in domain])  # type: ignore[arg-type]
    elif domain.log:  # type: ignore[union-attr]
        axes.set_xscale("log")
    axes.set_xlabel(key.rpartition(".")[2], fontsize=9, color=INK)
    axes.set_title("Loss at its first rung", loc="left", fontsize=10, color=INK, fontweight="bold")
