"""What `tunesmith check --html` writes: counts, findings, lengths, and rows with their learned tokens in colour."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from tunesmith.data.check.findings import findings
from tunesmith.data.check.report import (
    PERCENTILES,
    counts_told,
    first_rows,
    lengths,
    percentiles,
    pieces,
    title_of,
    visible,
)
from tunesmith.data.prepare import Prepared
from tunesmith.data.types import Example
from tunesmith.pages import bullets, document, table

NUM_BARS, WIDTH, HEIGHT = 32, 900, 130
STYLE = """<style>
.row { white-space: pre-wrap; overflow-wrap: anywhere; font: .85rem/1.6 ui-monospace, monospace;
  background: var(--soft); padding: .8rem 1rem; border-radius: 6px; color: var(--faint); }
.row b { color: var(--good); background: #dafbe1; font-weight: 600; }
.row i { color: #8250df; font-style: normal; }
svg text { font: 11px system-ui, sans-serif; fill: var(--faint); } svg rect { fill: #57a773; }
</style>"""


def check_page(title: str, prepared: Prepared, tokenizer: Any, rows: int) -> str:
    found = findings(prepared)
    examples = first_rows(prepared, rows)
    sections = [
        STYLE,
        f"<h1>{escape(title)}</h1>",
        bullets(counts_told(prepared)),
        "<h2>What to look at</h2>",
        bullets([str(finding) for finding in found]) if found else "<p>Nothing odd was found.</p>",
        "<h2>Tokens a row</h2>",
        _lengths(prepared),
        "<h2>Rows as the model sees them</h2>",
        "<p class='small'>Learned tokens are green, special tokens violet; all others are read and not learned.</p>",
        *(_row(example, tokenizer) for example in examples),
    ]
    return document(title, "\n".join(sections))


def _row(example: Example, tokenizer: Any) -> str:
    parts = []
    for learned, special, words in pieces(example, tokenizer):
        tag = "b" if learned else "i" if special else ""
        text = escape(visible(words))
        parts.append(f"<{tag}>{text}</{tag}>" if tag else text)
    return f"<p class='small'>{escape(title_of(example))}</p>\n<div class='row'>{''.join(parts)}</div>"


def _lengths(prepared: Prepared) -> str:
    of_all = lengths(prepared)
    titles = ["percentile", *("longest" if p == 100 else str(p) for p in PERCENTILES)]
    cells = [[name, *(f"{value:,}" for value in percentiles(values))] for name, values in of_all.items()]
    return _histogram(of_all["all"]) + table(titles, cells)


def _histogram(values: Sequence[int]) -> str:
    counts, edges = np.histogram(values, bins=min(NUM_BARS, max(1, max(values) - min(values) + 1)))
    bar = WIDTH / len(counts)
    bars = "".join(
        f"<rect x='{index * bar:.1f}' y='{HEIGHT - height:.1f}' width='{bar - 1:.1f}' height='{height:.1f}'>"
        f"<title>{edges[index]:.0f} to {edges[index + 1]:.0f} tokens: {count} rows</title></rect>"
        for index, (count, height) in enumerate(zip(counts, HEIGHT * counts / counts.max(), strict=True))
    )
    labels = f"<text x='0' y='{HEIGHT + 15}'>{min(values):,} tokens</text>"
    labels += f"<text x='{WIDTH}' y='{HEIGHT + 15}' text-anchor='end'>{max(values):,}</text>"
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT + 20}' role='img' aria-label='rows by length'>{bars}{labels}</svg>"
