"""Writes a study's report: results.json, report.md, report.html and the pictures; and shows the table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunesmith.atomic import write_file, write_json
from tunesmith.compare.page import page
from tunesmith.compare.pictures import draw
from tunesmith.compare.table import columns, legend, markdown, statements

TITLES = {
    "figures": "Figures with 95 % intervals; a dot for each seed",
    "curves": "While training",
    "cost": "Quality against time and memory",
    "rows": "Rows better and worse than the baseline's",
}


def write_report(found: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Everything into `folder`; returns the files by kind."""
    pictures = draw(found, folder)
    files = {"json": folder / "results.json", "markdown": folder / "report.md", "html": folder / "report.html"}
    for name, picture in pictures.items():
        files[name] = folder / f"{name}.png"
        write_file(files[name], picture)
    write_json(files["json"], found)
    write_file(files["markdown"], markdown(found, {f"{name}.png": TITLES[name] for name in pictures}))
    write_file(files["html"], page(found, folder, pictures, TITLES))
    return files


def show(found: Mapping[str, Any], files: Mapping[str, Path], console: Console) -> None:
    """The table turned on its side where it is too wide, the verdicts, and where the report lies."""
    titles, rows = columns(found)
    if sum(max(map(len, column)) + 2 for column in zip(titles, *rows, strict=True)) > console.width:
        titles, *rows = [list(column) for column in zip(titles, *rows, strict=True)]  # type: ignore[assignment]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title=found["study"], title_justify="left")
    for index, title in enumerate(titles):
        table.add_column(Text(title), justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print()
    console.print(table)
    console.print(Text(legend(found), style="dim"))
    console.print()
    for text in statements(found):
        console.print(Text(f"  {text}"))
    console.print()
    console.print(Text(f"report: {files['html']}"), soft_wrap=True)
