"""Examples into micro-batches: flat, without padding, as few and as even as the token budget allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tunesmith.data.types import Batch, Example, Segment


def collate(examples: Sequence[Example]) -> Batch:
    """One flat batch. Documents stand in order of length, so that attention can take those of like length together."""
    ordered = sorted(examples, key=len)
    lengths = [len(example) for example in ordered]
    ends = np.cumsum(lengths).tolist()
    return Batch(
        token_ids=torch.from_numpy(np.concatenate([example.token_ids for example in ordered])),
        loss_weights=torch.from_numpy(np.concatenate([example.loss_weights for example in ordered])),
        positions=torch.from_numpy(np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])),
        segments=tuple(Segment(end - length, end) for length, end in zip(lengths, ends, strict=True)),
        origins=tuple(example.origin for example in ordered),
    )


def micro_batches(examples: Sequence[Example], max_tokens: int) -> list[Batch]:
    """Batches of at most `max_tokens` tokens; a row longer than that stands alone. The same rows give the same cut."""
    return [collate([examples[index] for index in group]) for group in _groups([len(e) for e in examples], max_tokens)]


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
