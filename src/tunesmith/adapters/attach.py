"""Slots: what stands where a layer stood.

A slot owns the layer and its adapters. Which adapter acts is one `Switch` shared by all slots of a model, set before
the call: changing it costs the same however many slots there are. No name and no rows means the frozen model alone, bit
for bit. The frozen product is computed once, whoever shares the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.adapters.base import Adapter, Precomputed, base_of
from tunesmith.adapters.virtual import Virtual, ordinary
from tunesmith.errors import AdapterError


class Switch:
    """Which adapter acts on which tokens of the next call.

    `name`  one adapter for every token, or None for the base
    `rows`  instead, one name (or None) for each row of the batch [B, …]

    A recomputed forward runs inside backward: keep the switch set until that is done.
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
    """Stands where a layer stood: a Linear, Conv1D or Embedding, or a module that is trained in full (a norm)."""

    def __init__(self, layer: nn.Module, switch: Switch) -> None:
        super().__init__()
        self.layer = layer
        self.adapters = nn.ModuleDict()
        self._switch = (switch,)
        self.base = base_of(layer)
        self.train(layer.training)

    def __getattr__(self, name: str) -> Any:
        """What the slot has not, its layer has: code that looks at `weight`, `in_features` or `embed_scale`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    @property
    def switch(self) -> Switch:
        return self._switch[0]

    def adapter(self, name: str | None) -> Adapter | None:
        """The adapter called `name` here, or None where it does not touch this layer."""
        if name is None or name not in self.adapters:
            return None
        return self.adapters[name]  # type: ignore[return-value]

    def forward(self, x: Tensor, *more: Any, **named: Any) -> Tensor:
        switch = self._switch[0]
        if switch.rows is not None:
            return self._mixed(x, switch.rows, *more, **named)
        adapter = self.adapter(switch.name)
        return self.layer(x, *more, **named) if adapter is None else adapter(x, self.base, *more, **named)

    def _mixed(self, x: Tensor, rows: tuple[str | None, ...], *more: Any, **named: Any) -> Any:
        """x [B, …] with one adapter name per row: the frozen output once, then each adapter on its own rows.

        Models that flatten their tokens for a layer ([B·T, …], row after row) are followed. What all rows have in
        common (GPT-2's positions, [1, T]) is handed to each.
        """
        acting = [name for name in dict.fromkeys(rows) if self.adapter(name) is not None]
        if acting and x.shape[0] == 1:
            x = x.expand(len(rows), *x.shape[1:])
        y = self.layer(ordinary(x) if self.base.is_embedding else x, *more, **named)
        if not acting:
            return y
        if x.shape[0] % len(rows):
            raise AdapterError(
                "a mixed batch needs one adapter name per row",
                found=f"{len(rows)} names",
                expected=f"{x.shape[0]} rows",
            )
        per_row = x.shape[0] // len(rows)
        outputs = [part.clone() for part in (y if isinstance(y, tuple) else (y,))]
        for name in acting:
            mine = torch.tensor([row == name for row in rows]).repeat_interleave(per_row)
            index = mine.nonzero().squeeze(1).to(x.device)
            adapter = self.adapters[name]  # type: ignore[index]
            alone = adapter.replaces() is not None or adapter.changes_input  # type: ignore[operator]
            base = self.base if alone else Precomputed(self.base, outputs[0][index])
            others = [_of_rows(value, index, len(x)) for value in more]
            made = adapter(x[index], base, *others, **{key: _of_rows(v, index, len(x)) for key, v in named.items()})
            for output, part in zip(outputs, made if isinstance(made, tuple) else (made,), strict=True):
                output[index] = part
        return tuple(outputs) if isinstance(y, tuple) else outputs[0]


def _of_rows(value: Any, index: Tensor, num_rows: int) -> Any:
    """The rows of an argument that has one for each of the batch's; others are for all."""
    has_rows = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == num_rows
    return value[index] if has_rows else value


def slots(model: nn.Module) -> dict[str, Slot]:
    """Every slot of `model` by the path that its layer had."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Slot)}


def virtual(model: nn.Module, name: str | None) -> Virtual | None:
    """What adapter `name` of a causal language model puts before each document, or None."""
    slot = model.get_input_embeddings()  # type: ignore[operator]
    adapter = slot.adapter(name) if isinstance(slot, Slot) else None
    return adapter if isinstance(adapter, Virtual) else None


def virtuals(model: nn.Module, names: Sequence[str | None], switch: Switch | None) -> list[Virtual | None]:
    """What stands before the row of each of `names`; with no switch, of whichever adapter the model is set to."""
    slot = model.get_input_embeddings()  # type: ignore[operator]
    if not isinstance(slot, Slot):
        return [None] * len(names)
    return [virtual(model, name if switch is not None else slot.switch.name) for name in names]


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module of `model` once, by its path, as if no slot were there."""
    seen: set[int] = set()

    def walk(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        module = module.layer if isinstance(module, Slot) else module
        if id(module) in seen:
            return
        seen.add(id(module))
        yield path, module
        for name, child in module.named_children():
            yield from walk(f"{path}.{name}" if path else name, child)

    yield from walk("", model)


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
        elif layer.switch is not switch:
            raise AdapterError("the model's slots listen to another switch", where=path, fix="use one Switch per model")
        made[path] = layer
    return made


def detach(model: nn.Module) -> None:
    """Put every layer back where it stood: the original model, bit for bit."""
    for path, slot in slots(model).items():
        replace(model, path, slot.layer)


def remove(model: nn.Module, name: str) -> None:
    """Take the adapter called `name` out of every slot; slots left without adapters give way to their layers."""
    for path, slot in slots(model).items():
        if name in slot.adapters:
            del slot.adapters[name]
            if not slot.adapters:
                replace(model, path, slot.layer)
