"""NF4 and FP4 of bitsandbytes: 4 bits a number, one scale for each block of 64.

Paper   Dettmers et al. 2023, arXiv:2305.14314 (QLoRA), section 3: NF4 and double quantisation
Maths   W = code[q] s        q: 4 bits each, s: the largest |w| of the block
        double: s = code8[q8] s8 + mean(s)        q8: 8 bits each, s8 one for each 256 blocks
Bits    4.5 a number (s in fp32), 4.127 with double quantisation
Name    nf4, nf4-double; fp4 where files hold it

bitsandbytes quantises and dequantises, on the processor as on CUDA; transformers quantises layer by layer while it
reads. The product is ours (quantised.py).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.ghost import is_ghost
from tunesmith.quant.bnb import bitsandbytes, refuse_without_bitsandbytes
from tunesmith.quant.quantised import QuantisedLinear, stands_for_conv1d


class FourBitLinear(QuantisedLinear):
    """q [out in / 2, 1] uint8, two numbers in each; absmax as bitsandbytes has it."""

    q: Tensor
    absmax: Tensor
    code: Tensor
    double_absmax: Tensor | None
    double_code: Tensor | None
    offset: Tensor | None
    FIXED = "q"

    def __init__(self, q: Tensor, state: Any, bias: Tensor | None, dtype: torch.dtype) -> None:
        """`state`: bitsandbytes' QuantState of `q`."""
        super().__init__((state.shape[0], state.shape[1]), bias, dtype, q.device)
        self.kind, self.block = str(state.quant_type), int(state.blocksize)
        self.double_block = int(state.state2.blocksize) if state.nested else 0
        held = {"q": q, "absmax": state.absmax, "code": state.code}
        for name in ("double_absmax", "double_code", "offset"):
            self.register_buffer(name, None)
        if state.nested:
            held |= {"double_absmax": state.state2.absmax, "double_code": state.state2.code, "offset": state.offset}
        for name, tensor in held.items():
            self.register_buffer(name, tensor.detach().to(q.device))

    @property
    def storage(self) -> str:
        return self.kind if self.double_absmax is None else f"{self.kind}-double"

    def made(self, dtype: torch.dtype) -> Tensor:
        if is_ghost(self.q) and importlib.util.find_spec("bitsandbytes") is None:  # a forecast needs shapes alone
            return torch.empty(self.out_features, self.in_features, dtype=dtype, device=self.q.device)
        made = bitsandbytes().functional
        outer = None
        if self.double_absmax is not None:
            outer = made.QuantState(
                self.double_absmax, code=self.double_code, blocksize=self.double_block, dtype=torch.float32
            )
        state = made.QuantState(
            self.absmax,
            shape=torch.Size((self.out_features, self.in_features)),
            code=self.code,
            blocksize=self.block,
            quant_type=self.kind,
            dtype=dtype,
            offset=self.offset,
            state2=outer,
        )
        return made.dequantize_4bit(self.q, state)


def in_files(config: Mapping[str, Any]) -> str | None:
    """The storage of a checkpoint whose `quantization_config` this is; None for another's."""
    if config.get("quant_method") != "bitsandbytes" or not config.get("load_in_4bit"):
        return None
    return f"{config.get('bnb_4bit_quant_type', 'fp4')}{'-double' if config.get('bnb_4bit_use_double_quant') else ''}"


def reading(storage: str, config: Mapping[str, Any] | None) -> Any:
    """What transformers is told, so that it quantises a plain checkpoint while reading; None: the files say it."""
    refuse_without_bitsandbytes(storage)
    if config is not None:
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=storage == "nf4-double"
    )


def taken(layer: nn.Module, dtype: torch.dtype) -> QuantisedLinear | None:
    """`layer` as read, in our class and without copying; None where it is none of this storage's."""
    if not isinstance(layer, bitsandbytes().nn.Linear4bit):
        return None
    made = FourBitLinear(layer.weight.data, layer.weight.quant_state, layer.bias, dtype)
    made.turned = stands_for_conv1d(layer)
    return made


def hollow(linear: nn.Linear, storage: str, config: Mapping[str, Any] | None) -> QuantisedLinear:
    """`linear`, which stands on the meta device, in `storage`."""

    def held(size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    out, in_ = linear.weight.shape
    blocks, nested = math.ceil(out * in_ / BLOCK), storage.endswith("-double")
    absmax = held((blocks,), torch.uint8 if nested else torch.float32)
    outer = SimpleNamespace(blocksize=DOUBLE, absmax=held((math.ceil(blocks / DOUBLE),)), code=held((256,)))
    state = SimpleNamespace(
        shape=(out, in_), quant_type=storage.removesuffix("-double"), blocksize=BLOCK, nested=nested,
        absmax=absmax, code=held((16,)), state2=outer if nested else None, offset=held(()),
    )  # fmt: skip
    return FourBitLinear(held((math.ceil(out * in_ / 2), 1), torch.uint8), state, linear.bias, linear.weight.dtype)


BLOCK, DOUBLE = 64, 256
"""Numbers to a scale, and scales to a scale of theirs, as bitsandbytes makes them."""
