"""What happened to rows on their way, counted and told."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tunesmith.data.formats import FORMATS
from tunesmith.data.problems import counted
from tunesmith.data.reading.empty_cells import is_filled
from tunesmith.data.reading.files import RawRow
from tunesmith.data.types import Origin

FIRST = 5
TELLING = frozenset().union(*(names for kind in FORMATS.values() for names in kind.needs), {"margin"})
TELLING -= {"input", "context"}
"""Columns that say what a row is, or what is learned of it. What a row may do without (input beside an instruction,
context, system, tools, history) is not among them: rows with it and rows without are ordinary."""


@dataclass
class Tally:
    """How many rows something happened to, and the first few of them."""

    count: int = 0
    first: list[Origin] = field(default_factory=list)
    last: Origin | None = None

    def add(self, origin: Origin) -> None:
        """Both sides of a pair are one row."""
        if origin == self.last:
            return
        self.last = origin
        self.count += 1
        if len(self.first) < FIRST:
            self.first.append(origin)


# What can happen to a row, in the order in which it is told.
KINDS = {
    "empty": "empty, left out",
    "overlong": "longer than data.max_length, left out",
    "truncated": "cut to data.max_length",
    "split": "of plain text, cut into pieces",
    "unlearnable": "with nothing to learn, left out",
    "identical": "whose chosen and rejected answers are the same, left out",
    "cut_alike": "whose chosen and rejected answers differ only beyond data.max_length, left out",
    "straddled": "whose tokens at the border of prompt and answer are others than in generation",
    "unprompted": "whose earlier turns are shown otherwise than generation shows them",
    "hidden": "with words that the chat template does not write out",
    "control": "whose own text holds special tokens",
    "leaked": "also found in training",
}
OF_LENGTH = ("overlong", "truncated")
"""Of these the share of the rows is told."""


@dataclass
class Counts:
    """One side, training or held out. `visited`: rows of one pass over those that are kept, as often as the weight of
    their source says. `tokens` and `learned` are of one pass."""

    read: int = 0
    kept: int = 0
    visited: int = 0
    tokens: int = 0
    learned: int = 0
    kinds: dict[str, Tally] = field(default_factory=lambda: {kind: Tally() for kind in KINDS})
    lengths: array[int] = field(default_factory=lambda: array("q"))
    """Tokens of each row, of a pair of each side, before any is cut or left out for its length."""

    def add(self, kind: str, origin: Origin) -> None:
        self.kinds[kind].add(origin)

    def __getitem__(self, kind: str) -> int:
        return self.kinds[kind].count

    def share(self, kind: str) -> float:
        """Of the rows that were read."""
        return self[kind] / self.read if self.read else 0.0

    @property
    def is_cut(self) -> bool:
        """Whether the length of a row changed it, or left it out."""
        return any(self[kind] for kind in (*OF_LENGTH, "split"))


@dataclass(frozen=True)
class Finding:
    """What is odd about rows: `kind` for programs, `text` for people; `rows`: how many, and the first of them."""

    kind: str
    text: str
    rows: int = 0
    first: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = ", …" if self.rows > len(self.first) else ""
        return f"{self.text} ({', '.join(self.first)}{more})" if self.first else self.text


@dataclass
class OfSource:
    """What became of the rows of one of several sources."""

    path: str
    format: str
    weight: float
    train: Counts
    held_out: Counts
    first: int
    """Where its examples begin among those of training."""


def total(parts: Iterable[Counts]) -> Counts:
    """The counts of several sources as one."""
    made = Counts()
    for counts in parts:
        for name in ("read", "kept", "visited", "tokens", "learned"):
            setattr(made, name, getattr(made, name) + getattr(counts, name))
        for kind, tally in counts.kinds.items():
            known = made.kinds[kind]
            made.kinds[kind] = Tally(known.count + tally.count, (known.first + tally.first)[:FIRST])
        made.lengths.extend(counts.lengths)
    return made


def by_shape(rows: Iterable[RawRow], format: str, columns: Mapping[str, str | None]) -> dict[tuple[str, ...], Tally]:
    """The rows by the columns of `TELLING` that they fill, of those that `format` reads, the most frequent first; null
    is nothing, and so is an empty cell. `columns` renames: {ours: theirs}."""
    reads = FORMATS[format].reads if format in FORMATS else frozenset()
    reads -= {"labels"} if format == "labelled" else set()  # a row that none of the labels fits has none
    telling = [own for name in sorted(reads & TELLING) if (own := columns.get(name, name)) is not None]
    shapes: dict[tuple[str, ...], Tally] = {}
    for origin, row in rows:
        filled = tuple(name for name in telling if is_filled(row.get(name)))
        shapes.setdefault(filled, Tally()).add(origin)
    return dict(sorted(shapes.items(), key=lambda item: -item[1].count))


def told(counts: Counts) -> list[str]:
    """What happened to rows, in words, with the first rows of each kind."""
    return [
        f"{counted(tally.count, 'row')}{_of_all(counts, kind)} {KINDS[kind]} ({_places(tally)})"
        for kind, tally in counts.kinds.items()
        if tally.count
    ]


def _of_all(counts: Counts, kind: str) -> str:
    return f" ({counts.share(kind):.1%})" if kind in OF_LENGTH else ""


def _places(tally: Tally) -> str:
    """Row numbers under their file's name, which is said once."""
    by_source: dict[str, list[str]] = {}
    for origin in tally.first:
        by_source.setdefault(origin.source, []).append(str(origin.row))
    more = ", …" if tally.count > len(tally.first) else ""
    return "; ".join(f"{source}: row {', '.join(numbers)}" for source, numbers in by_source.items()) + more
