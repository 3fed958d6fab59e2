"""In which order rows are visited: a function of seed and epoch alone, with a cursor that a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np


def steps_per_epoch(lengths: Sequence[int], batch_size: int | None, batch_tokens: int | None) -> int:
    """Optimizer steps in one pass over rows of so many tokens each: one of the two says what a step takes."""
    if (batch_size is None) == (batch_tokens is None):
        raise ValueError("a step takes batch_size rows, or batch_tokens tokens")
    if batch_size is not None:
        return math.ceil(len(lengths) / batch_size)
    return min(len(lengths), max(1, math.ceil(Fraction(sum(lengths), batch_tokens))))


def even_cuts(lengths: np.ndarray, parts: int) -> np.ndarray:
    """Where to cut rows of so many tokens each [n] into `parts` runs, none empty: [parts + 1], from 0 to n.

    Each cut is the border of two rows that is nearest to an even one, so that the tokens of a run are less than one
    longest row away from an even share. In integers: the same on every machine.
    """
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    place = np.arange(parts + 1)
    even, there = place * ends[-1], ends * parts
    behind = np.searchsorted(there, even)
    before = np.maximum(behind - 1, 0)
    cuts = np.where(even - there[before] < there[behind] - even, before, behind)
    cuts = np.maximum.accumulate(cuts - place) + place
    return np.minimum(cuts, len(lengths) - parts + place)


class Order:
    """Rows in a seeded order: `batch_size` of them to an optimizer step, the last step of an epoch may be short; or
    about `batch_tokens` tokens to a step, all steps of an epoch being about as long.

    `groups`: one name per row (None: the row is alone); rows of one group are visited one after the other.
    `lengths`: the tokens of each row.
    """

    def __init__(
        self,
        groups: Sequence[str | None],
        *,
        batch_size: int | None,
        seed: int,
        shuffle: bool,
        lengths: Sequence[int] | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self.groups, self.batch_size, self.seed, self.shuffle = groups, batch_size, seed, shuffle
        self.lengths = np.array(lengths if lengths is not None else [1] * len(groups), dtype=np.int64)
        self.steps_per_epoch = steps_per_epoch(self.lengths.tolist(), batch_size, batch_tokens)
        self.done = 0
        """Steps that were handed out."""

    def of(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.groups))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.groups))
        first: dict[str, int] = {}
        for row in order:
            first.setdefault(self._group(row), len(first))
        return np.array(sorted(order, key=lambda row: first[self._group(row)]), dtype=order.dtype)

    def _group(self, row: int) -> str:
        group = self.groups[row]
        return f"alone {row}" if group is None else f"group {group}"

    def _cuts(self, order: np.ndarray) -> np.ndarray:
        """Where in the order of an epoch its steps begin, and where the last one ends [steps_per_epoch + 1]."""
        if self.batch_size is not None:
            return np.minimum(np.arange(self.steps_per_epoch + 1) * self.batch_size, len(order))
        return even_cuts(self.lengths[order], self.steps_per_epoch)

    def steps(self) -> Iterator[tuple[np.ndarray, float]]:
        """(rows of the next step, passes over all rows after it), without end, from where `done` stands."""
        while True:
            epoch, within = divmod(self.done, self.steps_per_epoch)
            order = self.of(epoch)
            cuts = self._cuts(order)
            for index in range(within, self.steps_per_epoch):
                self.done += 1
                yield order[cuts[index] : cuts[index + 1]], self.done / self.steps_per_epoch

    def steps_until(self, tokens: int) -> int:
        """Steps after which at least so many tokens of whole rows were visited, each row as often as it came."""
        whole_epochs, before = divmod(tokens - 1, int(self.lengths.sum()))  # of its pass, before the last token
        order = self.of(whole_epochs)
        visited = np.concatenate([[0], np.cumsum(self.lengths[order])])[self._cuts(order)]
        return whole_epochs * self.steps_per_epoch + int(np.searchsorted(visited, before + 1))

    def first(self, num_steps: int) -> np.ndarray:
        """All rows that the first `num_steps` steps visit."""
        epochs = range(math.ceil(num_steps / self.steps_per_epoch))
        visited = [self.of(epoch) for epoch in epochs]
        last = num_steps - (len(epochs) - 1) * self.steps_per_epoch
        visited[-1] = visited[-1][: self._cuts(visited[-1])[last]]
        return np.unique(np.concatenate(visited))
