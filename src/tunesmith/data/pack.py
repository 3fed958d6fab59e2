"""Examples into micro-batches: flat, without padding, as few and as even as the token budget allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tunesmith.data.types import Batch, Example, Segment

SHORTEST = 16
"""A common beginning of fewer tokens is not worth a segment of its own."""


@dataclass(frozen=True)
class _Unit:
    """Rows that stay together, and how many tokens they share at their beginning (0: one row alone)."""

    examples: Sequence[Example]
    shared: int = 0

    def __len__(self) -> int:
        return self.shared + sum(len(example) - self.shared for example in self.examples)


def collate(examples: Sequence[Example], *, share: bool = False) -> Batch:
    """One flat batch. Documents stand in order of length, so that attention can take those of like length together.

    `share`: what rows begin with in common is there once, as the parent of what follows in each.
    """
    return _collate(_units(examples, None, share))


def micro_batches(examples: Sequence[Example], max_tokens: int, *, share: bool = False) -> list[Batch]:
    """Batches of at most `max_tokens` tokens; a row longer than that stands alone. The same rows give the same cut."""
    return _cut(_units(examples, max_tokens, share), max_tokens)


def micro_batches_of(together: Sequence[Sequence[Example]], max_tokens: int, *, share: bool) -> list[Batch]:
    """The same for rows of which some stay together, whatever their length: the sides of a pair.

    `share`: what all rows of one such group begin with is there once.
    """
    return _cut([_Unit(rows, _in_common(rows) if share else 0) for rows in together], max_tokens)


def _cut(units: Sequence[_Unit], max_tokens: int) -> list[Batch]:
    return [_collate([units[index] for index in group]) for group in _groups([len(u) for u in units], max_tokens)]


def _in_common(rows: Sequence[Example]) -> int:
    """How many tokens `rows` share at their beginning, where that is worth a segment; each keeps one of its own."""
    first, most = rows[0].token_ids, min(map(len, rows)) - 1
    same = np.all([row.token_ids[:most] == first[:most] for row in rows], axis=0)
    shared = most if same.all() else int(np.argmin(same))
    return shared if len(rows) > 1 and shared >= SHORTEST else 0


def _collate(units: Sequence[_Unit]) -> Batch:
    ids: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    segments: list[Segment] = []
    there: list[Example] = []

    def add(example: Example, own: np.ndarray, start: int, end: int, parent: int | None) -> None:
        at = segments[-1].end if segments else 0
        ids.append(example.token_ids[start:end])
        weights.append(own)
        positions.append(np.arange(start, end, dtype=np.int64))
        segments.append(Segment(at, at + end - start, parent))
        there.append(example)

    for unit in sorted(units, key=len):
        parent = None
        if unit.shared:
            parent = len(segments)
            summed = np.sum([example.loss_weights[: unit.shared] for example in unit.examples], axis=0)
            add(unit.examples[0], summed.astype(np.float32), 0, unit.shared, None)
        for example in unit.examples:
            add(example, example.loss_weights[unit.shared :], unit.shared, len(example), parent)
    return Batch(
        token_ids=torch.from_numpy(np.concatenate(ids)),
        loss_weights=torch.from_numpy(np.concatenate(weights)),
        positions=torch.from_numpy(np.concatenate(positions)),
        segments=tuple(segments),
        examples=tuple(there),
    )


def _units(examples: Sequence[Example], max_tokens: int | None, share: bool) -> list[_Unit]:
    """Rows alone or, with `share`, together with those that begin alike as long as that saves tokens."""
    if not share:
        return [_Unit([example]) for example in examples]
    units: list[_Unit] = []
    for example in sorted(examples, key=lambda example: example.token_ids.tolist()):
        joined = _joined(units[-1], example) if units else None
        if joined is not None and (max_tokens is None or len(joined) <= max_tokens):
            units[-1] = joined
        else:
            units.append(_Unit([example]))
    return units


def _joined(unit: _Unit, example: Example) -> _Unit | None:
    """`unit` with one more row, or None where that saves nothing over the row alone."""
    first = unit.examples[0]
    most = min(unit.shared or len(first) - 1, len(example) - 1)
    apart = np.nonzero(first.token_ids[:most] != example.token_ids[:most])[0]
    shared = int(apart[0]) if len(apart) else most
    made = _Unit([*unit.examples, example], shared)
    saves = len(unit) + len(example) - len(made)
    return made if shared >= SHORTEST and saves > 0 else None


def _groups(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of rows, grouped: the fewest groups found, then the most even."""
    alone = [[index] for index, length in enumerate(lengths) if length > max_tokens]
    longest_first = sorted(
        (index for index, length in enumerate(lengths) if length <= max_tokens),
        key=lambda index: (-lengths[index], index),
    )
    if not longest_first:
        return alone
    total = sum(lengths[index] for index in longest_first)
    first_fit = _first_fit(lengths, longest_first, max_tokens)
    for count in range(-(-total // max_tokens), len(first_fit) + 1):
        even = _even(lengths, longest_first, max_tokens, count)
        if even is not None:
            return alone + even
    return alone + first_fit


def _first_fit(lengths: Sequence[int], order: Sequence[int], max_tokens: int) -> list[list[int]]:
    groups: list[list[int]] = []
    room: list[int] = []
    for index in order:
        at = next((i for i, free in enumerate(room) if free >= lengths[index]), None)
        if at is None:
            groups.append([])
            room.append(max_tokens)
            at = len(groups) - 1
        groups[at].append(index)
        room[at] -= lengths[index]
    return groups


def _even(lengths: Sequence[int], order: Sequence[int], max_tokens: int, count: int) -> list[list[int]] | None:
    """Each row into the emptiest of `count` groups, longest first; None where that overflows."""
    groups: list[list[int]] = [[] for _ in range(count)]
    sums = [0] * count
    for index in order:
        at = min(range(count), key=lambda i: (sums[i], i))
        if sums[at] + lengths[index] > max_tokens:
            return None
        groups[at].append(index)
        sums[at] += lengths[index]
    return groups
