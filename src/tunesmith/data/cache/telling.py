"""What is wrong with large sources, in the words that `prepare` has for all rows at once, without holding them.

`lay` ends at the first row that is broken, and does not know of those behind it. Here the sources are walked over once
more for each step of the way (read, part, convert, render), to its end: what is broken at one step is told before
anything of the next is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tunesmith.data.cache.large import Survey, Walks, of_format, parts_of, pieces, walks
from tunesmith.data.formats import Reading
from tunesmith.data.mixture import Part, each, refuse_unseen_keys
from tunesmith.data.prepare import Task, renderers, side_of
from tunesmith.data.problems import Problems
from tunesmith.data.reading.files import RawRow
from tunesmith.data.reading.streamed import ReadWhole, walked
from tunesmith.data.render import Renderer
from tunesmith.errors import DataError

_OTHER = 1
"""The stage of an error that is not of one row among others."""
_ANY = "text"
"""A format under which columns are renamed, where the rows are of none."""


def tell(task: Task, tokenizer: Any, *, to_the_end: bool) -> None:
    """Raises what is wrong with the rows. Returns where nothing is, or what none but `prepare` can say.

    `to_the_end`: renders the rows too, which takes as long as to prepare them.
    """
    try:
        parts = parts_of(task.settings)
        walk = walks(task, parts, each(parts, _told))
        read = [each(walk.side(held_out=held_out), lambda one: _read(task, *one)) for held_out in (False, True)]
        refuse_unseen_keys([one for side in read for one in side])
        worded = renderers(tokenizer, task.settings, task.settings.templates)
        if to_the_end:
            _render(task, walk, read, worded)
    except ReadWhole:
        pass


def _told(part: Part) -> Collection[RawRow]:
    """The rows of a source, once all of them can be read."""
    rows = walked(part.settings)
    if not isinstance(rows, list):
        rows.tell()  # type: ignore[attr-defined]
    return rows


@dataclass
class _Gathered:
    """What is wrong with the pieces of a side, as it would be with all of its rows at once."""

    problems: dict[int, Problems] = field(default_factory=dict)
    others: list[DataError] = field(default_factory=list)

    @contextmanager
    def of_piece(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            found = error.problems if isinstance(error.problems, Problems) else None
            if found is None:
                self.others.append(error)
            else:
                self.problems.setdefault(found.stage, Problems(found.noun, found.stage)).add_all(found)

    def raise_if_any(self) -> None:
        for stage, problems in sorted(self.problems.items()):
            if stage < _OTHER or not self.others:
                problems.raise_if_any()
        if self.others:
            raise self.others[0]


def _read(task: Task, part: Part, rows: Iterable[RawRow]) -> tuple[Part, Reading]:
    """Every row by its meaning, and none kept: of the reading only the keys of messages."""
    named, unknown = part, None
    if part.settings.format == "auto":
        survey, count = Survey(part.settings), 0
        for piece in pieces(rows):
            survey.look(piece)
            count += len(piece)
        try:
            named = of_format(part, survey.recognised(task) if count else _ANY)
        except DataError as error:  # told behind columns that are not there to be renamed
            named, unknown = of_format(part, _ANY), error
    gathered, keys, name = _Gathered(), frozenset[str](), ""
    for piece in pieces(rows):
        with gathered.of_piece():
            reading = replace(named, raw=piece).converted(task.takes, learn=part.settings.learn)
            keys, name = keys | reading.message_keys, reading.format
    if unknown is not None:
        gathered.others = [unknown]
    gathered.raise_if_any()
    return named, Reading([], name, message_keys=keys)


def _render(
    task: Task,
    walk: Walks,
    read: list[list[tuple[Part, Reading]]],
    worded: Mapping[str | None, Renderer],
) -> None:
    """Every row as the model sees it, source by source, and none kept."""
    for held_out, side in zip((False, True), read, strict=True):
        for (named, _), (part, rows) in zip(side, walk.side(held_out=held_out), strict=True):
            gathered = _Gathered()
            for piece in pieces(rows):
                own = replace(named, raw=piece)
                reading = own.converted(task.takes, learn=part.settings.learn)
                with gathered.of_piece():
                    side_of(own, reading, worded[part.template], task.advice)
            gathered.raise_if_any()
