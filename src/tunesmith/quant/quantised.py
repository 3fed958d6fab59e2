"""A linear layer whose matrix is held in few bits and made dense for each product.

Maths   y = x W^T + b        W [out, in] = what `dense` makes of the stored integers and scales
        dx = dy W            the backward pass asks `dense` again: nothing dense outlives a product

A product in the stored integers themselves would let rows share a scale or an outlier column (bitsandbytes' int8), and
one kernel would serve large batches and another small ones: here a row's result depends on that row alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class _Product(torch.autograd.Function):
    """x [..., in] -> [..., out], keeping the layer and not its numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dense(), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        dx = dy @ ctx.layer.dense() if ctx.needs_input_grad[0] else None
        db = dy.reshape(-1, dy.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None
        return dx, db, None


class QuantisedLinear(nn.Module):
    """W in buffers that a subclass names, b [out] a frozen parameter. Buffers keep their dtype whatever `.to` says."""

    like: Tensor
    """Empty: its dtype is the one products run in, its device that of the layer."""
    FIXED: ClassVar[str]
    """The buffer whose numbers are the same on whatever device the weight was quantised."""

    def __init__(
        self, shape: tuple[int, int], bias: Tensor | None, dtype: torch.dtype, device: torch.device | str | None = None
    ) -> None:
        """`shape`: (out, in); `dtype`: of products, and of `dense`."""
        super().__init__()
        self.out_features, self.in_features = shape
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=device), persistent=False)
        self.rounded: torch.dtype | None = None
        """What W is rounded to before products run in a wider dtype; None: in their own."""
        self.turned = False
        """The model's own layer is a Conv1D, which keeps W as [in, out]: plain weights are written in that form."""

    @property
    def storage(self) -> str:
        """How W is held, by the name that a recipe gives it."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """W [out, in], in the dtype of `like`, made anew."""
        made = self.made(self.rounded or self.like.dtype)
        return made.to(self.like.dtype)

    def made(self, dtype: torch.dtype) -> Tensor:
        """W [out, in] from what is stored, rounded to `dtype`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.bias, self)

    @torch.no_grad()
    def plain(self) -> nn.Linear | Conv1D:
        """A layer with the same numbers in 16 or 32 bits, of the class that the model's own code has here."""
        layer: nn.Linear | Conv1D
        if self.turned:
            with torch.device("meta"):
                layer = Conv1D(self.out_features, self.in_features)
            layer.weight = nn.Parameter(self.dense().t().contiguous(), requires_grad=False)
        else:
            layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
            layer.weight = nn.Parameter(self.dense(), requires_grad=False)
        bias = self.bias
        if bias is None and self.turned:  # files may leave it out, a Conv1D cannot
            bias = nn.Parameter(self.like.new_zeros(self.out_features), requires_grad=False)
        layer.register_parameter("bias", bias)
        return layer.train(self.training)

    def held_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = {name: held for name, held in self._buffers.items() if held is not None and name != "like"}
        super()._apply(fn, recurse)
        for name, held in exact.items():
            moved = self._buffers[name]
            assert moved is not None
            if moved.dtype != held.dtype:
                self._buffers[name] = held.to(moved.device)
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, storage={self.storage}"


def quantised_layers(model: nn.Module) -> list[tuple[str, QuantisedLinear]]:
    """Every layer of `model` that holds its matrix in few bits, by its path."""
    return [(path, module) for path, module in model.named_modules() if isinstance(module, QuantisedLinear)]


def stands_for_conv1d(layer: nn.Module) -> bool:
    """Whether transformers put `layer` where a Conv1D was: it notes the class there, and turns the matrix itself."""
    return issubclass(getattr(layer, "source_cls", nn.Linear), Conv1D)


def storage_name(model: nn.Module) -> str:
    """How the matrices of `model` are held: plain, or the name of their storage (names, where they differ)."""
    return "+".join(sorted({layer.storage for _, layer in quantised_layers(model)})) or "plain"


def substitute(model: nn.Module, change: Callable[[nn.Module], nn.Module | None]) -> int:
    """Put `change(layer)` where it is not None; one layer at a time, so that old and new never lie there together."""
    count = 0
    for path in [path for path, _ in model.named_modules() if path]:
        new = change(model.get_submodule(path))
        if new is not None:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, new)
            count += 1
    return count


def dequantise(model: nn.Module) -> int:
    """Every quantised layer gives way to a plain one with the same numbers; returns how many."""
    return substitute(model, lambda layer: layer.plain() if isinstance(layer, QuantisedLinear) else None)
