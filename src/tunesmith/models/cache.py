"""Keys and values of the rows of a batch, in one buffer per layer that a model sees through a window.

All rows share the column that is written next, so a prompt stands right-aligned: its padding lies to its left. A row
that ends is overwritten by the last one, and the batch shrinks; a new prompt may take the free row at any time, right-
aligned at the column where the others stand. Sliding-window layers keep everything: their mask does the forgetting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

COLUMN_BLOCK = 64
"""Columns by which a buffer grows."""


class _Layer(CacheLayerMixin):
    """keys [R, H, C, D], values [R, H, C, D'] of one layer; the model sees `rows` × [first, end)."""

    is_sliding = False
    keys: Any
    values: Any

    def __init__(self, owner: RowCache) -> None:
        super().__init__()
        self.owner = owner
        self.end = owner.end

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        num_rows, num_columns = self.owner.num_rows, self.owner.num_columns
        # Zeros, not empty: padding is masked, and a masked NaN would still poison a product.
        self.keys = key_states.new_zeros(num_rows, key_states.shape[1], num_columns, key_states.shape[3])
        self.values = value_states.new_zeros(num_rows, value_states.shape[1], num_columns, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, first, start = self.owner.rows, self.owner.first, self.end
        self.end = start + key_states.shape[2]
        self.keys[rows, :, start : self.end] = key_states
        self.values[rows, :, start : self.end] = value_states
        return self.keys[rows, :, first : self.end], self.values[rows, :, first : self.end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.end - self.owner.first + query_length, 0

    def get_seq_length(self) -> int:
        return self.end - self.owner.first

    def get_max_length(self) -> int:
        return -1


class RowCache(Cache):
    """`num_rows` × `num_columns` of every layer, allocated when the first key arrives."""

    layers: list[Any]

    def __init__(self, num_rows: int, num_columns: int) -> None:
        super().__init__(layers=[])
        self.num_rows, self.num_columns = num_rows, num_columns
        self.rows, self.first, self.end = slice(0, num_rows), 0, 0
        self.given: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
        """(layer, keys, values) -> what is kept in place of what the model computed."""

    def look_at(self, rows: slice, first: int, end: int) -> None:
        """The next forward pass is of `rows`, sees columns [first, end) and writes from `end` on."""
        self.rows, self.first, self.end = rows, first, end
        for layer in self.layers:
            layer.end = end

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        while len(self.layers) <= layer_idx:
            self.layers.append(_Layer(self))
        if self.given is not None:
            key_states, value_states = self.given(layer_idx, key_states, value_states)
        return self.layers[layer_idx].update(key_states, value_states)

    def bytes_per_token(self) -> int:
        """Of all layers together; 0 before the first forward pass."""
        tensors = [t for layer in self._filled() for t in (layer.keys, layer.values)]
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in tensors)

    def _filled(self) -> list[Any]:
        return [layer for layer in self.layers if layer.is_initialized]

    def relay(self, num_rows: int, num_columns: int, first: int, end: int, to: int) -> None:
        """New buffers of another size, with the columns [first, end) moved to begin at column `to`."""
        kept = min(num_rows, self.num_rows)
        for layer in self._filled():
            for name in ("keys", "values"):
                old = getattr(layer, name)
                new = old.new_zeros(num_rows, old.shape[1], num_columns, old.shape[3])
                new[:kept, :, to : to + end - first] = old[:kept, :, first:end]
                setattr(layer, name, new)
        self.num_rows, self.num_columns = num_rows, num_columns

    def copy_rows(self, sources: list[int], targets: list[int], first: int, end: int) -> None:
        """Row `sources[i]` into row `targets[i]`, columns [first, end)."""
        if not sources:
            return
        for layer in self._filled():
            for buffer in (layer.keys, layer.values):
                buffer[targets, :, first:end] = buffer[sources, :, first:end]

    def take_prefix(self, prefix: RowCache, rows: slice, sources: Tensor, columns: Tensor, first: int) -> None:
        """Copy a prefix that was computed once into `rows`, from column `first` on.

        sources [B] which row of `prefix`; columns [B, W] which of its columns stands in each of ours.
        """
        while len(self.layers) < len(prefix.layers):
            self.layers.append(_Layer(self))
        width = columns.shape[1]
        for layer, given in zip(self.layers, prefix.layers, strict=True):
            if not given.is_initialized:
                continue
            if not layer.is_initialized:
                layer.lazy_initialization(given.keys, given.values)
            for buffer, known in ((layer.keys, given.keys), (layer.values, given.values)):
                # [B, W, H, D]: the indexed dimensions come first
                buffer[rows, :, first : first + width] = known[sources[:, None], :, columns].transpose(1, 2)
