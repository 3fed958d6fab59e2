"""int8 of bitsandbytes: 8 bits a number, one scale for each row of W.

Paper   Dettmers et al. 2022, arXiv:2208.07339 (LLM.int8()), section 2: row-wise absmax quantisation
Maths   W = q diag(m) / 127        q [out, in] in -127 .. 127, m [out]: the largest |w| of each row
Bits    8 a number, and 32 a row
Name    int8
Departs a storage only: the paper multiplies in int8 and takes columns of x with outliers apart, so that what one token
        holds decides how its neighbours are rounded. Here the product runs on dequantised weights
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.quant.bnb import bitsandbytes, refuse_without_bitsandbytes
from tunesmith.quant.quantised import QuantisedLinear, stands_for_conv1d


class Int8Linear(QuantisedLinear):
    """q [out, in] int8, m [out] fp32."""

    q: Tensor
    m: Tensor
    FIXED = "m"

    def __init__(self, q: Tensor, m: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__((q.shape[0], q.shape[1]), bias, dtype, q.device)
        self.register_buffer("q", q.detach())
        self.register_buffer("m", m.detach().to(q.device, torch.float32).reshape(-1))

    @property
    def storage(self) -> str:
        return "int8"

    def made(self, dtype: torch.dtype) -> Tensor:
        return bitsandbytes().functional.int8_vectorwise_dequant(self.q, self.m).to(dtype)


def in_files(config: Mapping[str, Any]) -> str | None:
    """The storage of a checkpoint whose `quantization_config` this is; None for another's."""
    return "int8" if config.get("quant_method") == "bitsandbytes" and config.get("load_in_8bit") else None


def reading(storage: str, config: Mapping[str, Any] | None) -> Any:
    """What transformers is told, so that it quantises a plain checkpoint while reading; None: the files say it."""
    refuse_without_bitsandbytes(storage)
    if config is not None:
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def taken(layer: nn.Module, dtype: torch.dtype) -> QuantisedLinear | None:
    """`layer` as read, in our class and without copying; None where it is none of this storage's."""
    if not isinstance(layer, bitsandbytes().nn.Linear8bitLt):
        return None
    weight = layer.weight
    made = Int8Linear(weight.data if weight.CB is None else weight.CB.data, weight.SCB, layer.bias, dtype)
    made.turned = stands_for_conv1d(layer)
    return made


def hollow(linear: nn.Linear, storage: str, config: Mapping[str, Any] | None) -> QuantisedLinear:
    """`linear`, which stands on the meta device, in this storage."""
    q = torch.empty(linear.weight.shape, dtype=torch.int8, device="meta")
    return Int8Linear(q, torch.empty(len(q), device="meta"), linear.bias, linear.weight.dtype)
