"""Layers of every storage of few bits, made by a known formula; and a checkpoint in GPTQ's format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunesmith.quant.bnb import bitsandbytes
from tunesmith.quant.four_bit import FourBitLinear
from tunesmith.quant.gptq import GPTQLinear
from tunesmith.quant.int8 import Int8Linear
from tunesmith.quant.quantised import QuantisedLinear


def nf4(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, double: bool = False, kind: str = "nf4"):
    q, state = bitsandbytes().functional.quantize_4bit(
        weight.float().contiguous(), quant_type=kind, compress_statistics=double
    )
    return FourBitLinear(q, state, bias, dtype)


def int8(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Int8Linear:
    m = weight.float().abs().amax(1)
    return Int8Linear((weight.float() * 127 / m[:, None]).round().to(torch.int8), m, bias, dtype)


def packed(numbers: Tensor, bits: int, dim: int) -> Tensor:
    """Numbers int [a, b] -> words int32, lowest bits first along `dim`: the plain form, number by number."""
    numbers = numbers.long() if dim == 1 else numbers.long().t()
    per_word = 32 // bits
    words = torch.zeros(numbers.shape[0], numbers.shape[1] // per_word, dtype=torch.int64)
    for column in range(numbers.shape[1]):
        words[:, column // per_word] |= numbers[:, column] << bits * (column % per_word)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    return words if dim == 1 else words.t().contiguous()


def less_each(words: Tensor, bits: int, less: int) -> Tensor:
    """`less` taken off every number in `words`, as GPT-QModel does: off the word, which borrows where a number is 0."""
    taken = (words.long() - sum(less << shift for shift in range(0, 32, bits))) & 0xFFFFFFFF
    return torch.where(taken >= 1 << 31, taken - (1 << 32), taken).to(torch.int32)


def gptq_tensors(
    weight: Tensor,
    bits: int = 4,
    group: int = 8,
    sym: bool = False,
    act_order: bool = False,
    zero_less: int = 1,
) -> tuple[dict[str, Tensor], Tensor]:
    """(what a file holds of `weight` [out, in], the dense weight that it means), by rounding to the nearest.

    `zero_less`: what the format takes off each zero point.
    """
    out, in_ = weight.shape
    group = in_ if group == -1 else group
    top = 2**bits - 1
    order = torch.randperm(in_, generator=torch.Generator().manual_seed(5)) if act_order else torch.arange(in_)
    g_idx = torch.empty(in_, dtype=torch.int32)
    g_idx[order] = torch.arange(in_, dtype=torch.int32) // group
    groups = int(g_idx.max()) + 1
    scales, zeros = torch.empty(groups, out), torch.empty(groups, out, dtype=torch.int32)
    for number in range(groups):
        part = weight[:, g_idx == number].float()
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if sym:
            high = torch.maximum(high, -low)
            low = -high
        scales[number] = ((high - low) / top).half().float()
        zeros[number] = (
            torch.full((out,), 2 ** (bits - 1)) if sym else (-low / scales[number]).round().clamp(0, top)
        ).int()
    s, z = scales[g_idx.long()].t(), zeros[g_idx.long()].t()
    q = (weight.float() / s + z).round().clamp(0, top).int()
    tensors = {
        "qweight": packed(q.t(), bits, dim=0),
        "qzeros": less_each(packed(zeros, bits, dim=1), bits, zero_less),
        "scales": scales.half(),
        "g_idx": g_idx,
    }
    return tensors, s * (q - z)


def gptq(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, bits: int = 4, group: int = 8, **how) -> GPTQLinear:
    tensors, _ = gptq_tensors(weight, bits, group, **how)
    layer = GPTQLinear((weight.shape[0], weight.shape[1]), bits, group, how.get("zero_less", 1), bias, dtype)
    for name, tensor in tensors.items():
        getattr(layer, name).copy_(tensor)
    return layer


MADE: dict[str, Callable[[Tensor, Tensor | None, torch.dtype], QuantisedLinear]] = {
    "nf4": nf4,
    "nf4-double": lambda weight, bias, dtype: nf4(weight, bias, dtype, double=True),
    "int8": int8,
    "gptq": gptq,
}
"""Storage -> a layer of it from weight [out, in], bias and the dtype of products."""


def make_gptq_checkpoint(plain: Path, folder: Path, **how) -> dict[str, Tensor]:
    """The model in `plain` with the matrices of its blocks in GPTQ's format; returns the dense weights it means."""
    config = json.loads((plain / "config.json").read_text())
    tensors = load_file(plain / "model.safetensors")
    made, meant = {}, {}
    for name, tensor in tensors.items():
        path = name.removesuffix(".weight")
        if tensor.dim() == 2 and ".layers." in name:
            stored, meant[path] = gptq_tensors(tensor, **how)
            made |= {f"{path}.{key}": value.contiguous() for key, value in stored.items()}
        else:
            made[name] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    for file in plain.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            (folder / file.name).write_bytes(file.read_bytes())
    config["quantization_config"] = {
        "quant_method": "gptq",
        "bits": how.get("bits", 4),
        "group_size": how.get("group", 8),
        "sym": how.get("sym", False),
        "desc_act": how.get("act_order", False),
        "checkpoint_format": "gptq" if how.get("zero_less", 1) else "gptq_v2",
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    return meant


def plain_of(layer: QuantisedLinear) -> nn.Linear:
    """A plain layer that holds `layer`'s dequantised weight, copied by hand."""
    made = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, dtype=layer.like.dtype)
    with torch.no_grad():
        made.weight.copy_(layer.dense())
        if layer.bias is not None:
            made.bias.copy_(layer.bias)
    return made.requires_grad_(False)
