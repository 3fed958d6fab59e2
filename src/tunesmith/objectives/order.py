"""In which order rows are visited: a function of seed and epoch alone, with a cursor that a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np


class Order:
    """Rows in a seeded order, `batch_size` to an optimizer step; the last step of an epoch may be short.

    `groups`: one name per row (None: the row is alone); rows of one group are visited one after the other.
    """

    def __init__(self, groups: Sequence[str | None], *, batch_size: int, seed: int, shuffle: bool) -> None:
        self.groups, self.batch_size, self.seed, self.shuffle = groups, batch_size, seed, shuffle
        self.steps_per_epoch = math.ceil(len(groups) / batch_size)
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

    def steps(self) -> Iterator[tuple[np.ndarray, float]]:
        """(rows of the next step, passes over all rows after it), without end, from where `done` stands."""
        while True:
            epoch, within = divmod(self.done, self.steps_per_epoch)
            order = self.of(epoch)
            for index in range(within, self.steps_per_epoch):
                self.done += 1
                yield order[index * self.batch_size : (index + 1) * self.batch_size], self.done / self.steps_per_epoch

    def first(self, num_steps: int) -> np.ndarray:
        """All rows that the first `num_steps` steps visit."""
        epochs = range(math.ceil(num_steps / self.steps_per_epoch))
        visited = np.concatenate([self.of(epoch) for epoch in epochs])
        last = num_steps - (len(epochs) - 1) * self.steps_per_epoch
        whole = (len(epochs) - 1) * len(self.groups)
        return np.unique(visited[: whole + last * self.batch_size])
