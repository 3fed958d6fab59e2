"""Large sources on their way to examples: a piece of the rows at a time, laid flat as soon as they are made.

What comes of them is what `prepare` makes of all rows at once. Whatever else may happen (an error, rows that turn out
to be of another format than they began, a kind that cannot be laid flat) is raised here in no particular words:
telling.py says what is wrong with which rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, islice, product

import numpy as np

from tunesmith.data.cache.laying import Laying
from tunesmith.data.check.counts import FIRST, Counts, Tally, total
from tunesmith.data.formats import BESIDE_TEXT, FORMATS, LOOKED_AT, Reading, recognise
from tunesmith.data.mixture import Part, refuse_unseen_keys, unseen_roles
from tunesmith.data.prepare import Side, Task, side_of
from tunesmith.data.reading.empty_cells import is_filled
from tunesmith.data.reading.files import INDEX, RawRow
from tunesmith.data.reading.streamed import ReadWhole, walked
from tunesmith.data.render import BATCH, Renderer
from tunesmith.data.rows.question_rows import UNCLEAR
from tunesmith.data.rows.repeated import spoken_apart
from tunesmith.data.settings import DataSettings
from tunesmith.data.split import Split, as_held_out, group_of, split
from tunesmith.data.types import Origin

FEW, MOST_KINDS = 10_000, 12
"""Rows that stand in for all of a side when its format is recognised, where that can be; of how many kinds of rows."""
PIECE = BATCH
"""Rows that are in memory at once: as many as are tokenised together."""
TELLING = frozenset[str]().union(
    *(names for kind in FORMATS.values() for names in (*kind.needs, kind.unless)),
    *(unclear.names for unclear in UNCLEAR.values()),
)
"""Columns by which a format is recognised."""


@dataclass
class LaidSide:
    """One side of a source; its examples are the rows [start, end) of the table."""

    side: Side
    start: int
    end: int


@dataclass
class Laid:
    notes: tuple[str, ...]
    train: list[LaidSide]
    held_out: list[LaidSide]


@dataclass(frozen=True)
class Walks:
    """Every source, to be walked over, and which of the rows are held out. `held_out`: those of a file of their own."""

    settings: DataSettings
    parts: list[Part]
    rows: list[Collection[RawRow]]
    parted: Split

    def side(self, *, held_out: bool) -> Iterator[tuple[Part, Iterable[RawRow]]]:
        """Of each source its rows on one side."""
        if held_out and not self.parted.chosen:
            yield from [(Part(self.settings, []), self.parted.held_out)] * bool(self.parted.held_out)
            return
        chosen = np.zeros(sum(map(len, self.rows)) if self.parted.chosen else 0, dtype=bool)
        chosen[list(self.parted.chosen)] = True
        first = 0
        for part, rows in zip(self.parts, self.rows, strict=True):
            if not self.parted.chosen:
                yield part, rows
                continue
            is_chosen = chosen[first : first + len(rows)]
            first += len(rows)
            yield part, _Picked(rows, is_chosen == held_out)


def parts_of(settings: DataSettings) -> list[Part]:
    """Every source without its rows."""
    said = zip(settings.sources, settings.weights, settings.templates, strict=True)
    return [Part(one, [], weight, number, template) for number, (one, weight, template) in enumerate(said)]


def walks(task: Task, parts: list[Part], rows: list[Collection[RawRow]]) -> Walks:
    return Walks(task.settings, parts, rows, _parted(rows, task.settings, seed=task.seed))


def lay(task: Task, worded: Mapping[str | None, Renderer], laying: Laying) -> Laid:
    """Every row of every source, training first."""
    parts = parts_of(task.settings)
    walk = walks(task, parts, [walked(part.settings) for part in parts])
    readings: list[tuple[Part, Reading]] = []

    def sides(*, held_out: bool) -> list[LaidSide]:
        made: list[LaidSide] = []
        for part, rows in walk.side(held_out=held_out):
            start = len(laying)
            side, reading = _side(task, part, rows, worded[part.template], laying, held_out=held_out)
            if side.counts.read:
                readings.append((part, reading))
            made.append(LaidSide(side, start, len(laying)))
        return made

    train, held_out = sides(held_out=False), sides(held_out=True)
    is_read = map(len, walk.rows) if walk.parted.chosen else (one.side.counts.read for one in train)
    if not all(is_read):  # a source without rows
        raise ReadWhole
    refuse_unseen_keys(readings)
    return Laid((walk.parted.how, *unseen_roles(readings)), train, held_out)


class _Picked(Iterable[RawRow]):
    """Those of the rows that are wanted."""

    def __init__(self, rows: Collection[RawRow], wanted: np.ndarray) -> None:
        self.rows, self.wanted = rows, wanted

    def __iter__(self) -> Iterator[RawRow]:
        number = -1
        for number, row in enumerate(self.rows):
            if number == len(self.wanted):
                break
            if self.wanted[number]:
                yield row
        if number + 1 != len(self.wanted):  # the file is another than it was at the first walk
            raise ReadWhole


def _parted(rows: Sequence[Collection[RawRow]], settings: DataSettings, *, seed: int) -> Split:
    """As `split` parts them, which is given what it looks at alone: how many there are, or the group of each."""
    wanted = as_held_out(settings.held_out)
    if wanted is None or wanted.file is not None:
        return split([], settings, seed=seed)
    nothing: RawRow = (Origin("", 0), {})
    if wanted.key is None:
        return split([nothing] * sum(map(len, rows)), settings, seed=seed)
    known: dict[str, RawRow] = {}
    groups = []
    for origin, row in (one for of_part in rows for one in of_part):
        if wanted.key not in row:  # which `split` says
            groups.append((origin, dict.fromkeys(row)))
            continue
        value = row[wanted.key]
        groups.append(known.setdefault(group_of(value), (Origin("", 0), {wanted.key: value})))
    return split(groups, settings, seed=seed)


def _side(
    task: Task,
    part: Part,
    rows: Iterable[RawRow],
    renderer: Renderer,
    laying: Laying,
    *,
    held_out: bool,
) -> tuple[Side, Reading]:
    """What becomes of the rows of one source on one side, and what was noticed in reading them."""
    survey = Survey(part.settings)
    counts: list[Counts] = []
    named, keys, roles = part, frozenset[str](), frozenset[str]()
    for piece in pieces(rows):
        survey.look(piece)
        if named.settings.format == "auto":
            named = of_format(part, survey.recognised(task))
        own = replace(named, raw=piece)
        reading = own.converted(task.takes, learn=part.settings.learn)
        keys, roles = keys | reading.message_keys, roles | reading.roles
        made = side_of(own, reading, renderer, task.advice)
        counts.append(made.counts)
        survey.add_shapes(made.shapes, piece)
        laying.add(made.examples)
        if held_out:
            laying.add_meanings(made.rows)
    if not counts:
        return Side(part), Reading([], "")
    if part.settings.format == "auto" and survey.recognised(task) != named.settings.format:
        raise ReadWhole
    seen = replace(named, raw=survey.telling).converted(task.takes, learn=part.settings.learn)
    side = Side(part, seen.format, seen.notes, counts=total(counts), shapes=survey.by_count())
    return side, replace(seen, rows=[], message_keys=keys, roles=roles)


def of_format(part: Part, name: str) -> Part:
    return replace(part, settings=part.settings.model_copy(update={"format": name}))


def pieces(rows: Iterable[RawRow]) -> Iterator[list[RawRow]]:
    walk = iter(rows)
    while piece := list(islice(walk, PIECE)):
        yield piece


@dataclass
class Survey:
    """What is said of all rows of a side together, gathered from its pieces.

    `filled`: how many rows there are of each set of columns that are there, and of those of them that hold something.
    `first`: the columns of the first rows. `apart`: formats beside whose columns `text` says something of its own.
    `telling`: the first rows that show a column, or a key of a message, that
    none before them did.
    """

    settings: DataSettings
    filled: Counter[tuple[frozenset[str], frozenset[str]]] = field(default_factory=Counter)
    first: list[RawRow] = field(default_factory=list)
    apart: set[str] = field(default_factory=set)
    telling: list[RawRow] = field(default_factory=list)
    shapes: dict[tuple[str, ...], Tally] = field(default_factory=dict)
    _known: set[object] = field(default_factory=set)

    def look(self, piece: Sequence[RawRow]) -> None:
        renamed, is_auto = self.settings.columns, self.settings.format == "auto"
        for origin, row in piece:
            shown = set(_shown(row))
            if not shown <= self._known:
                self._known |= shown
                self.telling.append((origin, row))
            if is_auto:
                ours = {name: name for name in row if name not in renamed.values()} | renamed
                there = {name: own for name, own in ours.items() if own is not None}
                if len(self.first) < LOOKED_AT:
                    self.first.append((origin, dict.fromkeys(name for name in there if name != INDEX)))
                if "text" in there and len(self.apart) < len(BESIDE_TEXT):
                    self.apart |= spoken_apart([{name: row.get(own) for name, own in there.items()}], BESIDE_TEXT)
                self.filled[
                    frozenset(name for name in there if name in TELLING),
                    frozenset(name for name, own in there.items() if name in TELLING and is_filled(row.get(own))),
                ] += 1

    def recognised(self, task: Task) -> str:
        """The format that most rows have."""
        rows: list[RawRow] = []
        for (there, filled), count in zip(self.filled, fewer(list(self.filled.values())), strict=True):
            stand_in = (self.first[0][0], {name: True if name in filled else None for name in there})
            rows += [stand_in] * count
        return recognise(rows, task.takes, first=self.first, apart=self.apart)

    def add_shapes(self, shapes: Mapping[tuple[str, ...], Tally], piece: Sequence[RawRow]) -> None:
        new = [shape for shape in shapes if shape not in self.shapes]
        if len(new) > 1:  # in the order of the rows, which decides between shapes of one count
            places = {origin: place for place, (origin, _) in enumerate(piece)}
            new.sort(key=lambda shape: places[shapes[shape].first[0]])
        for shape in (*new, *(shape for shape in shapes if shape not in new)):
            known, more = self.shapes.get(shape, Tally()), shapes[shape]
            self.shapes[shape] = Tally(known.count + more.count, (known.first + more.first)[:FIRST], more.last)

    def by_count(self) -> dict[tuple[str, ...], Tally]:
        return dict(sorted(self.shapes.items(), key=lambda item: -item[1].count))


def fewer(counts: Sequence[int]) -> list[int]:
    """Smaller counts, of which the same ones together are more than half of all."""
    divisor = math.gcd(*counts)
    exact = [count // divisor for count in counts]
    if sum(exact) <= FEW or len(exact) > MOST_KINDS:
        return exact
    rounded = [max(1, round(count * FEW / sum(exact))) for count in exact]
    for chosen in product((False, True), repeat=len(exact)):
        halves = (2 * sum(compress(counts, chosen)) > sum(counts) for counts in (exact, rounded))
        if len(set(halves)) == 2:
            return exact
    return rounded


def _shown(row: Mapping[str, object]) -> Iterator[object]:
    """What of a row the notes on unused columns and keys are made of."""
    yield frozenset(name for name, value in row.items() if value not in (None, ""))
    for name, value in row.items():
        if is_filled(value):
            yield name
        if isinstance(value, list):
            yield from (
                (name, tuple((key, inner is None) for key, inner in item.items()))
                for item in value
                if isinstance(item, dict)
            )
