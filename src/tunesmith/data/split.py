"""Rows kept away from training: by share, count, file or key; the same seed gives the same rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.data.problems import Problems, counted, listed
from tunesmith.data.reading.files import RawRow
from tunesmith.data.reading.sources import read_held_out
from tunesmith.data.settings import DataSettings, HeldOut
from tunesmith.errors import DataError

KEY_SHARE = 0.1


@dataclass(frozen=True)
class Split:
    """Both sides in the order in which they were read, and how they were parted."""

    train: list[RawRow]
    held_out: list[RawRow]
    how: str
    chosen: frozenset[int] = frozenset()
    """Which of the rows were held out, counted from 0; none where held-out rows are of a file of their own."""


def as_held_out(value: float | int | str | HeldOut | None) -> HeldOut | None:
    """The short forms written out: 0.1 is a share, 200 a count, text a file."""
    if value is None or isinstance(value, HeldOut):
        return value
    if isinstance(value, str):
        return HeldOut(file=value)
    return HeldOut(share=value) if isinstance(value, float) else HeldOut(count=value)


def split(raw: Sequence[RawRow], settings: DataSettings, *, seed: int) -> Split:
    wanted = as_held_out(settings.held_out)
    if wanted is None:
        return Split(list(raw), [], "nothing is held out")
    if wanted.file is not None:
        held_out = read_held_out(wanted.file, split=settings.split, subset=settings.subset)
        return Split(list(raw), held_out, f"held out: {wanted.file}")
    if wanted.key is not None:
        share = KEY_SHARE if wanted.share is None else wanted.share
        chosen, how = _whole_groups(raw, wanted.key, share, seed), f"held out: groups of {wanted.key}"
    else:
        count = wanted.count if wanted.count is not None else max(1, round((wanted.share or 0) * len(raw)))
        if count >= len(raw):
            raise DataError(
                "nothing is left to train on",
                where="data.held_out",
                found=f"{counted(count, 'row')} to hold out of {len(raw):,}",
                fix="hold out fewer rows",
            )
        order = np.random.default_rng(seed).permutation(len(raw))
        chosen, how = set(order[:count].tolist()), f"held out: {counted(count, 'row')} by seed {seed}"
    return Split(
        [row for index, row in enumerate(raw) if index not in chosen],
        [row for index, row in enumerate(raw) if index in chosen],
        how,
        frozenset(chosen),
    )


def group_of(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _whole_groups(raw: Sequence[RawRow], key: str, share: float, seed: int) -> set[int]:
    """Rows of groups drawn in seeded order until the share is reached, passing over those that would make it more than
    twice the share. One group at least stays on each side."""
    problems = Problems(f"rows lack the column {key!r} of data.held_out")
    groups: dict[str, list[int]] = {}
    for index, (origin, row) in enumerate(raw):
        if key in row:
            groups.setdefault(group_of(row[key]), []).append(index)
        else:
            what, fix = f"no column {key!r} to split by", "set data.held_out.key to a column that every row has"
            problems.add(DataError(what, where=str(origin), found=f"columns {listed(row)}", fix=fix))
    problems.raise_if_any()
    if len(groups) < 2:
        raise DataError(
            "all rows are of one group, which cannot stand on both sides",
            where=f"data.held_out.key: {key}",
            found=f"{len(groups)} value of {key!r}",
            fix="hold out by another column, by share, or by count",
        )
    names = sorted(groups)
    chosen: set[int] = set()
    for position in np.random.default_rng(seed).permutation(len(names))[:-1].tolist():
        group = groups[names[position]]
        if len(chosen) + len(group) <= 2 * share * len(raw):
            chosen.update(group)
        if len(chosen) >= share * len(raw):
            break
    smallest = min(names, key=lambda name: len(groups[name]))
    return chosen or set(groups[smallest])
