"""The adapter contract.

An adapter sits beside one frozen layer, never asks how that layer is stored, and never changes it. One instance is
one adapter of one layer: many adapters are many instances, never dictionaries inside the maths.

A method is one file in this folder and one line in `METHODS` (adapters/__init__.py). The file offers

    Settings                            its record, with `method: Literal["name"]`
    build(settings, base, generator)    -> Adapter for one layer; generator None: zeros, to be filled from a file
    to_peft(settings), from_peft(config)    its adapter_config.json, both ways; None for a config of another method

and, where a method needs them:

    shared(settings, shapes, generator) -> {letter: Tensor}, SHARED     tensors that layers share and that do not learn,
                                        handed to `build` as its last argument, and their names in a file
    for_layers(settings, body, paths) -> {path: settings}    where a layer's settings depend on where it stands
    peft_layers(layer_settings) -> fields of adapter_config.json that name layers
    check(settings, num_steps, optimizer)    refuses a run that the method cannot serve, before any weight is loaded;
                                        `num_steps` is None for a budget in minutes
    for_share(settings, share) -> settings    of a run with a share of the budget, where a setting counts steps
    PLAIN_ONLY    why it cannot stand beside a base of few bits, in a sentence: the pair is refused
    on_step(adapters, step, num_steps) -> requests    called within every optimizer step, when `step` updates are done.
                                        It may change tensors of `adapters` (by path), and draws from torch's own
                                        generator. What only the loop can do it returns: `ResetMoments`, `Rewarm`

What `on_step` changes, and all that it will read, stands in parameters and persistent buffers: they are the adapter's
state, which a checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tunesmith.adapters.settings import AdapterSettings
from tunesmith.quant.dense import dense_weight, like, storage_of, weight_shape


@dataclass(frozen=True)
class ResetMoments:
    """Asks the loop to forget what the optimizer has learned of some tensors."""

    names: tuple[str, ...]
    """As in the adapter set: "path.letter"."""
    kept: float = 0.0
    """Share of the numbers whose moments stay, those with the largest first one; 0: as new to the optimizer."""


@dataclass(frozen=True)
class Rewarm:
    """Asks the loop to raise the learning rate anew from nearly 0 to what the schedule says, over so many steps."""

    steps: int


Request = ResetMoments | Rewarm


@dataclass(frozen=True)
class Stored:
    """One tensor of an adapter's file: one or more of its own tensors side by side along `dim`."""

    pieces: Sequence[Tensor]
    dim: int = 0
    grows: bool = False
    """The last piece becomes as long as the file has it."""

    def joined(self) -> Tensor:
        return self.pieces[0] if len(self.pieces) == 1 else torch.cat([*self.pieces], self.dim)

    @property
    def shape(self) -> torch.Size:
        return self.joined().shape

    def fits(self, shape: torch.Size) -> bool:
        """Whether a tensor of this shape can be copied in."""
        if not self.grows or len(shape) != len(self.shape):
            return shape == self.shape
        fixed = sum(piece.shape[self.dim] for piece in self.pieces[:-1])
        others = [size for dim, size in enumerate(shape) if dim != self.dim]
        own = [size for dim, size in enumerate(self.shape) if dim != self.dim]
        return others == own and shape[self.dim] >= fixed

    @torch.no_grad()
    def fill(self, tensor: Tensor) -> None:
        """Copy `tensor`, which fits, into the pieces."""
        sizes = [piece.shape[self.dim] for piece in self.pieces]
        if self.grows:
            sizes[-1] = tensor.shape[self.dim] - sum(sizes[:-1])
            lengthen(self.pieces[-1], self.dim, sizes[-1])
        for piece, part in zip(self.pieces, tensor.split(sizes, self.dim), strict=True):
            piece.copy_(part)


def lengthen(tensor: Tensor, dim: int, size: int) -> None:
    """Give a buffer another length in place; its numbers are then anything."""
    tensor.resize_(*tensor.shape[:dim], size, *tensor.shape[dim + 1 :])


class Base:
    """What an adapter sees of the layer that it stands beside: shapes, bias, numbers on request, and the product.

    The layer is held without being registered as a submodule, so that an adapter's own parameters stay its own.
    """

    left_alone: bool | None = None
    """Whether the model writes into nothing that this place hands out (Falcon adds into it): then a method may keep it
    without a copy. None: not seen yet."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = (layer,)
        self.out_features, self.in_features = weight_shape(layer)
        self.is_embedding = isinstance(layer, nn.Embedding)

    @property
    def layer(self) -> nn.Module:
        return self._layer[0]

    @property
    def bias(self) -> Tensor | None:
        """[out] or None."""
        return getattr(self.layer, "bias", None)

    @property
    def output_scale(self) -> Tensor | None:
        """What an embedding multiplies its rows by (Gemma's √hidden), or None."""
        return getattr(self.layer, "embed_scale", None)

    @property
    def dtype(self) -> torch.dtype:
        return like(self.layer).dtype

    @property
    def device(self) -> torch.device:
        return like(self.layer).device

    def weight(self) -> Tensor:
        """Dense [out, in]. Ask again in the backward pass; keep no copy."""
        return dense_weight(self.layer)

    def output(self, x: Tensor) -> Tensor:
        """The frozen layer's own output. x [..., in] (or token ids [...] for an embedding) -> [..., out]."""
        return self.layer(x)


class Whole(Base):
    """A module that is no matrix (a norm, a router): known by its own parameters and its output alone."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = (layer,)
        self.out_features = self.in_features = 0
        self.is_embedding = False

    @property
    def dtype(self) -> torch.dtype:
        return next(self.layer.parameters(recurse=False)).dtype

    @property
    def device(self) -> torch.device:
        return next(self.layer.parameters(recurse=False)).device

    def weight(self) -> Tensor:
        raise TypeError(f"{type(self.layer).__name__} is no matrix")


def base_of(layer: nn.Module) -> Base:
    """How an adapter sees `layer`."""
    return Whole(layer) if storage_of(layer) is None else Base(layer)


class Precomputed(Base):
    """A base whose output is known already: rows of one product that several adapters share."""

    def __init__(self, base: Base, output: Tensor) -> None:
        self._layer = base._layer
        self.out_features, self.in_features, self.is_embedding = base.out_features, base.in_features, base.is_embedding
        self._output = output

    def output(self, x: Tensor) -> Tensor:
        """As `x` is shaped: a method may flatten its tokens before it asks."""
        leading = x.shape if self.is_embedding else x.shape[:-1]
        return self._output.reshape(*leading, self.out_features)


class Adapter(nn.Module):
    """One method's tensors beside one layer. Trained tensors are fp32 `nn.Parameter`s; frozen ones are buffers."""

    neutral: ClassVar[bool] = True
    """Starts as the base: the first forward equals the frozen layer's."""
    mergeable: ClassVar[bool] = True
    """`merged` is exact."""
    growing: ClassVar[Mapping[str, int]] = {}
    """Buffers that become longer while training, each with the dimension along which it does."""
    changes_input: bool = False
    """Asks the frozen layer for the product of something other than x, which rows of a mixed batch cannot share."""

    def forward(self, x: Tensor, base: Base, *more: Any, **named: Any) -> Tensor:
        """x [..., in] -> [..., out], the adapted layer's whole output, in x's dtype.

        `more` and `named` are further arguments of the layer's own forward; a matrix has none.
        """
        raise NotImplementedError

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Dense weight [out, in] and bias [out] that compute the same, in `weight`'s dtype. Differentiable.

        Reckoned in the wider of fp32 and `weight`'s dtype: hand in a double weight for a double result.
        """
        raise NotImplementedError

    def replaces(self) -> dict[str, Tensor] | None:
        """The layer's own parameters by name, where the adapter stands in for them one by one; else None."""
        return None

    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        """(A [r, in], B [out, r], scale) when the update is purely scale * B @ A, else None."""
        return None

    def in_file(self, settings: AdapterSettings) -> AdapterSettings:
        """The settings that its file is written by: the layer's own, unless training changed the adapter's shape."""
        return settings

    def groups(self) -> dict[str, float]:
        """Learning-rate multipliers by parameter name; absent means 1 (LoRA+ gives B its own)."""
        return {}

    def stored(self) -> dict[str, Stored]:
        """What a file of this adapter holds, by the names that PEFT uses behind the layer's path."""
        raise NotImplementedError
