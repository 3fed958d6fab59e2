"""What the makers of pages share."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS, RESULTS = REPOSITORY / "docs", REPOSITORY / "benchmarks" / "results"
MADE = "<!-- made by scripts/make_docs.py from the code; change it there -->\n"


def line_of(header: str, word: str) -> str:
    """The rest of the header's line that begins with `word`."""
    return next((line.removeprefix(word).strip() for line in header.splitlines() if line.startswith(word)), "")


def cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def read(pattern: str, folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Result files that match, by name, oldest first."""
    found = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob(pattern))}
    return dict(sorted(found.items(), key=lambda item: item[1].get("date", item[1].get("made", ""))))
