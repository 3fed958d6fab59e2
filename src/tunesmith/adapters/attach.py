"""Slots: what stands where a layer stood.

A slot owns the layer and its adapters. Which adapter acts is one `Switch` shared by all slots of a model, set before
the call: changing it costs the same however many slots there are. `switch.runs` None means the frozen model alone, bit
for bit. The frozen product is computed once, whoever shares the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tunesmith.adapters.base import Adapter, Base, Precomputed
from tunesmith.errors import AdapterError


class Switch:
    """Which adapter acts on which tokens of the next call.

    `name`  one adapter for every token, or None for the base
    `rows`  instead, one name (or None) for each row of the batch [B, …]
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.rows: tuple[str | None, ...] | None = None

    @contextmanager
    def set_to(self, name: str | None, rows: Sequence[str | None] | None = None) -> Iterator[None]:
        """Switch for the length of a `with`, then back."""
        before = (self.name, self.rows)
        self.name, self.rows = name, None if rows is None else tuple(rows)
        try:
            yield
        finally:
            self.name, self.rows = before


class Slot(nn.Module):
    """Stands where a Linear, Conv1D or Embedding stood."""

    def __init__(self, layer: nn.Module, switch: Switch) -> None:
        super().__init__()
        self.layer = layer
        self.adapters = nn.ModuleDict()
        self._switch = (switch,)
        self.base = Base(layer)

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for code that looks at it (tied embeddings, dtype probes)."""
        return self.layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.layer, "bias", None)

    def adapter(self, name: str | None) -> Adapter | None:
        """The adapter called `name` here, or None where it does not touch this layer."""
        if name is None or name not in self.adapters:
            return None
        return self.adapters[name]  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        switch = self._switch[0]
        if switch.rows is not None:
            return self._mixed(x, switch.rows)
        adapter = self.adapter(switch.name)
        return self.layer(x) if adapter is None else adapter(x, self.base)

    def _mixed(self, x: Tensor, rows: tuple[str | None, ...]) -> Tensor:
        """x [B, …] with one adapter name per row: the frozen product once, then each adapter on its own rows."""
        if x.shape[0] != len(rows):
            raise AdapterError(
                "a mixed batch needs one adapter name per row", found=f"{len(rows)} names", expected=f"{x.shape[0]} rows"
            )
        y = self.layer(x).clone()
        for name in dict.fromkeys(rows):
            adapter = self.adapter(name)
            if adapter is None:
                continue
            index = torch.tensor([i for i, row in enumerate(rows) if row == name], device=x.device)
            y[index] = adapter(x[index], Precomputed(self.base, y[index]))
        return y


def slots(model: nn.Module) -> dict[str, Slot]:
    """Every slot of `model` by the path that its layer had."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Slot)}


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` where `path` points."""
    parent_path, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent_path), leaf, module)


def attach(model: nn.Module, paths: Sequence[str], switch: Switch) -> dict[str, Slot]:
    """Make slots of the layers at `paths` (those that are slots already stay). Adapters are added by the caller."""
    made = {}
    for path in paths:
        layer = model.get_submodule(path)
        if not isinstance(layer, Slot):
            layer = Slot(layer, switch)
            replace(model, path, layer)
        made[path] = layer
    return made


def detach(model: nn.Module) -> None:
    """Put every layer back where it stood: the original model, bit for bit."""
    for path, slot in slots(model).items():
        replace(model, path, slot.layer)
