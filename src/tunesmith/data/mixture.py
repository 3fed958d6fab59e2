"""The sources of `data.train` as one body of rows: read, parted into training and held-out rows, mixed by weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, TypeVar

import numpy as np

from tunesmith.data.formats import LEARNABLE, Reading, convert
from tunesmith.data.problems import counted, listed
from tunesmith.data.reading.files import RawRow
from tunesmith.data.reading.sources import read
from tunesmith.data.settings import DataSettings, Learn
from tunesmith.data.split import as_held_out, split
from tunesmith.data.types import Answer, Example, Row
from tunesmith.errors import DataError, TunesmithError, together

FROM_PYTHON = "rows"
"""What rows that were handed over in Python are called."""
_DRAW = 2
"""Keeps these draws apart from those of the order, which are seeded by seed and epoch."""
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Rows of one source. `settings` are the data section as it reads them (`DataSettings.sources`), `number` is its
    place among the sources."""

    settings: DataSettings
    raw: list[RawRow]
    weight: float = 1.0
    number: int = 0
    template: str | None = None

    @property
    def path(self) -> str:
        return self.settings.named

    def converted(
        self,
        takes: tuple[type[Row], ...] = LEARNABLE,
        or_else: tuple[type[Row], ...] = (),
        *,
        learn: Learn = "answers",
    ) -> Reading:
        """The rows by their meaning."""
        how, held_out = self.settings, as_held_out(self.settings.held_out)
        return convert(
            self.raw,
            how.format,
            how.columns,
            takes,
            or_else,
            message_keys=how.message_keys,
            roles=how.roles,
            learn=learn,
            also_read=[name for name in (how.group_by, held_out.key if held_out else None) if name is not None],
        )


@dataclass(frozen=True)
class Parted:
    """The rows of each source on either side, and how they were parted. Held-out rows of a file are one part."""

    train: list[Part]
    held_out: list[Part]
    how: str


def read_parts(
    settings: DataSettings, rows: Iterable[Mapping[str, Any]] | None = None, *, limit: int | None = None
) -> list[Part]:
    """The rows of every source; `rows` stand in for all of them where given. `limit`: no more of each than that."""
    if rows is not None:
        return [Part(settings.model_copy(update={"train": FROM_PYTHON}), read(rows, limit=settings.limit))]

    def part(number: int) -> Part:
        one = settings.sources[number]
        raw = read(one.named, split=one.split, subset=one.subset, limit=limit or one.limit)
        return Part(one, raw, settings.weights[number], number, settings.templates[number])

    return each(range(len(settings.sources)), part)


def part_rows(parts: Sequence[Part], settings: DataSettings, *, seed: int) -> Parted:
    """Parts the rows of all sources together, as the section's `held_out` says."""
    parted = split([row for part in parts for row in part.raw], settings, seed=seed)
    if parted.held_out and not parted.chosen:
        return Parted(list(parts), [Part(settings, parted.held_out)], parted.how)
    train, held_out, first = list[Part](), list[Part](), 0
    for part in parts:
        is_chosen = [place in parted.chosen for place in range(first, first + len(part.raw))]
        first += len(part.raw)
        sides = (train, False), (held_out, True)
        for side, wanted in sides:
            raw = [row for row, chosen in zip(part.raw, is_chosen, strict=True) if chosen is wanted]
            side.append(replace(part, raw=raw))
    return Parted(train, held_out if parted.chosen else [], parted.how)


def each(items: Iterable[Any], do: Callable[[Any], T]) -> list[T]:
    """What `do` gives of every item, or the errors of all that fail in one."""
    done: list[T] = []
    errors: list[TunesmithError] = []
    for item in items:
        try:
            done.append(do(item))
        except TunesmithError as error:
            errors.append(error)
    if errors:
        raise together(errors)
    return done


def mixed(examples: Sequence[Example], part: Part, *, seed: int) -> tuple[list[Example], int]:
    """The examples of one pass over a source, and how many those are, a pair as one: all of its rows as often as its
    weight is whole, and behind them the share that is left over, drawn by `seed`, in their order."""
    rows = [list(same) for _, same in groupby(examples, key=lambda example: example.origin)]
    whole, share = divmod(part.weight, 1)
    order = np.random.default_rng((seed, part.number, _DRAW)).permutation(len(rows))
    drawn = sorted(order[: round(share * len(rows))].tolist())
    visited = rows * int(whole) + [rows[place] for place in drawn]
    if rows and not visited:
        raise DataError(
            "its weight leaves no row of the source",
            where=f"data.train[{part.number}].weight",
            found=f"{part.weight:g} of {counted(len(rows), 'row')} of {part.path}",
            fix="raise it, or take the source out",
        )
    count = sum(1 if isinstance(row[0], Answer) else len(row) for row in visited)
    return [example for row in visited for example in row], count


def refuse_unseen_keys(read: Sequence[tuple[Part, Reading]]) -> None:
    """A key that `message_keys` names stands in some message of the rows for which it is named."""
    named = dict.fromkeys(theirs for part, _ in read for theirs in part.settings.message_keys.values() if theirs)
    missing: list[str] = []
    seen: set[str] = set()
    for theirs in named:
        keys = [reading.message_keys for part, reading in read if theirs in part.settings.message_keys.values()]
        if not any(theirs in of_one for of_one in keys):
            missing.append(theirs)
            seen.update(*keys)
    if missing:
        raise DataError(
            f"data.message_keys names {listed(missing)}, which no message has",
            where=", ".join(dict.fromkeys(part.path for part, _ in read if part.settings.message_keys)),
            found=f"keys {listed(sorted(seen))}" if seen else "no message",
            fix="write data.message_keys as {ours: theirs}",
        )


def unseen_roles(read: Sequence[tuple[Part, Reading]]) -> list[str]:
    """What is said of names in `roles` that no message has: misspelt, or of turns that these rows do not have."""
    named = dict.fromkeys(theirs for part, _ in read for theirs in part.settings.roles)
    of_some = [reading.roles for part, reading in read if part.settings.roles]
    seen = frozenset[str]().union(*of_some)
    if not (missing := [theirs for theirs in named if theirs not in seen]):
        return []
    return [f"data.roles names {listed(missing)}, which no message has; roles there: {listed(sorted(seen))}"]
