"""Examples into micro-batches: flat, without padding, as few and as even as the token budget allows."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace

import numpy as np
import torch

from tunesmith.data.types import Batch, Example, Segment

EVEN_TRIES = 8
"""How many groups fewer than best fit needs are tried for even ones. It seldom needs more than one too many."""
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
    large = sum(2 * lengths[index] > max_tokens for index in longest_first)  # no two of them in one group
    fewest = max(-(-total // max_tokens), large)
    fitted = _best_fit(lengths, longest_first, max_tokens)
    if len(fitted) > fewest:  # once in a thousand times the plainer rule needs one group fewer
        fitted = _first_fit(lengths, longest_first, max_tokens, len(fitted) - 1) or fitted
    for count in range(max(fewest, len(fitted) - EVEN_TRIES), len(fitted) + 1):
        even = _even(lengths, longest_first, max_tokens, count)
        if even is not None:
            return alone + even
    return alone + fitted


def _best_fit(lengths: Sequence[int], order: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Each row into the group that it leaves the least room in, in O(n log n): rooms are looked up in sorted order."""
    groups: list[list[int]] = []
    rooms: list[int] = []
    with_room: dict[int, list[int]] = {}  # the groups that have it; of several the one that got it last
    for index in order:
        at = bisect_left(rooms, lengths[index])
        if at == len(rooms):
            group, room = len(groups), max_tokens
            groups.append([])
        else:
            room = rooms[at]
            group = with_room[room].pop()
            if not with_room[room]:
                del rooms[at]
        groups[group].append(index)
        left = room - lengths[index]
        if not with_room.setdefault(left, []):
            insort(rooms, left)
        with_room[left].append(group)
    return groups


def _first_fit(lengths: Sequence[int], order: Sequence[int], max_tokens: int, count: int) -> list[list[int]] | None:
    """Each row into the first of `count` groups that has room for it; None where none has. In O(n log n): over the
    groups stands a tree, each of its nodes with the most room below it. Node i has the children 2 i and 2 i + 1."""
    width = 1 << max(count - 1, 0).bit_length()
    most = [max_tokens] * (2 * width)
    most[width + count :] = [-1] * (width - count)
    for node in range(width - 1, 0, -1):
        most[node] = max(most[2 * node], most[2 * node + 1])
    groups: list[list[int]] = [[] for _ in range(count)]
    for index in order:
        if most[1] < lengths[index]:
            return None
        node = 1
        while node < width:
            node = 2 * node + (most[2 * node] < lengths[index])
        groups[node - width].append(index)
        most[node] -= lengths[index]
        while node > 1:
            node //= 2
            most[node] = max(most[2 * node], most[2 * node + 1])
    return groups


def _even(lengths: Sequence[int], order: Sequence[int], max_tokens: int, count: int) -> list[list[int]] | None:
    """Each row into the emptiest of `count` groups, longest first; None where that overflows."""
    groups: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, group) for group in range(count)]
    for index in order:
        tokens, group = emptiest[0]
        if tokens + lengths[index] > max_tokens:
            return None
        groups[group].append(index)
        heapreplace(emptiest, (tokens + lengths[index], group))
    return groups
