"""Counts the bytes that real tensors hold, now and at most: what a forecast is held against."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Counter(TorchDispatchMode):
    """Of what is made inside, and of what is taken. `floating`: of tensors with fractions alone."""

    def __init__(self, *, floating: bool = True) -> None:
        super().__init__()
        self.floating = floating
        self.bytes = self.peak = 0
        self.known: set[int] = set()

    def take(self, tensor: Tensor) -> None:
        if self.floating and not tensor.dtype.is_floating_point:
            return
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if size == 0 or key in self.known:
            return
        self.known.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for item in tree_iter(found):
            if isinstance(item, Tensor):
                self.take(item)
        return found
