"""Full: a trained copy of a module's own parameters, beside the frozen module.

Maths   y = module(x) with its parameters θ replaced by θ', cast to the frozen dtype for the product
Shapes  θ' [as θ], fp32 or wider
Init    θ' = θ: the first forward equals the base model
Merge   θ' itself
        Of a layer held in few bits: of its dequantised weight
Departs the copy belongs to the adapter, so that the base stays as it was and many adapters can share it. Of an
        embedding only the rows that the batch names are cast, never the table
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters.base import Adapter, Base, Stored
from tunesmith.quant.quantised import QuantisedLinear


class Full(Adapter):
    def __init__(self, base: Base, shared: nn.Parameter | None = None) -> None:
        """`shared` is the copy of a tied weight, made for the other side of the tie."""
        super().__init__()
        layer = base.layer.plain() if isinstance(base.layer, QuantisedLinear) else base.layer
        self.transposed = isinstance(layer, (Conv1D, nn.Embedding))
        for name, parameter in layer.named_parameters(recurse=False):
            wide = torch.promote_types(parameter.dtype, torch.float32)
            copy = nn.Parameter(parameter.detach().to(wide, copy=True))
            self.register_parameter(name, shared if shared is not None and name == "weight" else copy)

    def forward(self, x: Tensor, base: Base, *more: Any, **named: Any) -> Tensor:
        layer, dtype = base.layer, base.dtype
        if isinstance(layer, QuantisedLinear):
            return F.linear(x, self.get_parameter("weight").to(dtype), self._bias(dtype))
        if base.is_embedding and is_lookup(layer):
            assert isinstance(layer, nn.Embedding)
            y = F.embedding(x, self.get_parameter("weight"), padding_idx=layer.padding_idx).to(dtype)
            return y if base.output_scale is None else y * base.output_scale.to(dtype)
        cast = {name: parameter.to(dtype) for name, parameter in self.named_parameters()}
        return torch.func.functional_call(layer, cast, (x, *more), named)

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        bias = self._parameters.get("bias")
        return None if bias is None else bias.to(dtype)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        own = self.get_parameter("weight")
        dense = own.t() if self.transposed else own
        return dense.to(weight.dtype), bias if bias is None else self.get_parameter("bias").to(bias.dtype)

    def replaces(self) -> dict[str, Tensor]:
        return dict(self.named_parameters())

    def stored(self) -> dict[str, Stored]:
        return {name: Stored([parameter]) for name, parameter in self.named_parameters()}


def is_lookup(layer: nn.Module) -> bool:
    """Whether an embedding hands out its rows as they are, or scaled; one that reckons its own positions does not."""
    return isinstance(layer, nn.Embedding) and (type(layer) is nn.Embedding or hasattr(layer, "embed_scale"))
