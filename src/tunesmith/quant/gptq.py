"""GPTQ checkpoints: 2, 4 or 8 bits a number, a scale and a zero point for each group of inputs and each output.

Paper   Frantar et al. 2022, arXiv:2210.17323; the file format: AutoGPTQ and GPT-QModel
Maths   W[o, i] = s[g(i), o] (q[i, o] - z[g(i), o])        g(i): the group of input i (`g_idx`)
Shapes  qweight [in bits / 32, out] int32: along inputs, lowest bits first   qzeros [groups, out bits / 32] int32: along
        outputs, lowest bits first   scales [groups, out]   g_idx [in]
Bits    `bits` a number, and 16 + `bits` for each group and output
Name    gptq
Departs nothing. Files of the first format (`checkpoint_format: gptq`) hold each zero point less one: the one is added
        to the packed word as a whole, with its carries, as GPT-QModel does

Read in torch, with neither gptqmodel nor optimum: nobody here quantises, calibrates or calls their kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ModelError
from tunesmith.quant.quantised import QuantisedLinear

BITS = (2, 4, 8)
"""Widths of which a whole number fits into a word of 32 bits."""
FORMATS = {"gptq": 1, "gptq_v2": 0}
"""`checkpoint_format` -> what is to be added to each stored zero point."""
TENSORS = ("qweight", "qzeros", "scales", "g_idx")


class GPTQLinear(QuantisedLinear):
    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor
    FIXED = "qweight"

    def __init__(
        self,
        shape: tuple[int, int],
        bits: int,
        group: int,
        zero_offset: int,
        bias: Tensor | None,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        """Empty, to be filled from a file. `group`: inputs that share a scale; -1: all of them."""
        super().__init__(shape, bias, dtype, device)
        out, in_ = shape
        self.bits, self.zero_offset = bits, zero_offset
        groups = 1 if group == -1 else -(-in_ // group)
        for name, size, kind in (
            ("qweight", (in_ * bits // 32, out), torch.int32),
            ("qzeros", (groups, out * bits // 32), torch.int32),
            ("scales", (groups, out), torch.float32),
            ("g_idx", (in_,), torch.int32),
        ):
            self.register_buffer(name, torch.zeros(size, dtype=kind, device=device))

    @property
    def storage(self) -> str:
        return "gptq"

    def made(self, dtype: torch.dtype) -> Tensor:
        q = unpacked(self.qweight, self.bits, dim=0)
        z = unpacked(plus_each(self.qzeros, self.bits, self.zero_offset), self.bits, dim=1)
        groups = self.g_idx.long()
        return ((q - z[groups]) * self.scales[groups]).t().to(dtype)


def unpacked(words: Tensor, bits: int, dim: int) -> Tensor:
    """Words int32 [a, b] -> numbers int32, 32 / bits times as many along `dim`, lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    if dim == 0:
        return ((words[:, None, :] >> shifts[None, :, None]) & (2**bits - 1)).reshape(-1, words.shape[1])
    return ((words[:, :, None] >> shifts) & (2**bits - 1)).reshape(words.shape[0], -1)


def plus_each(words: Tensor, bits: int, offset: int) -> Tensor:
    """`offset` added to every number that `words` hold, as one addition of words that wraps around."""
    if offset == 0:
        return words
    pattern = sum(offset << shift for shift in range(0, 32, bits))
    total = (words.long() + pattern) & 0xFFFFFFFF
    return torch.where(total >= 1 << 31, total - (1 << 32), total).to(torch.int32)


def in_files(config: Mapping[str, Any]) -> str | None:
    """The storage of a checkpoint whose `quantization_config` this is; None for another's."""
    if config.get("quant_method") != "gptq":
        return None
    bits, form = config.get("bits"), config.get("checkpoint_format") or "gptq"
    group = config.get("group_size", -1)
    if bits not in BITS or form not in FORMATS or config.get("dynamic") or not (group == -1 or group > 0):
        form = f"{form}, layers of different widths" if config.get("dynamic") else form
        raise ModelError(
            "this GPTQ checkpoint is of a kind that is not read",
            found=f"{bits} bits in groups of {group}, format {form}",
            expected=f"{', '.join(map(str, BITS))} bits throughout, format {' or '.join(FORMATS)}",
            fix="dequantise it with GPT-QModel into a plain folder, and name that",
        )
    return "gptq"


def reading(storage: str, config: Mapping[str, Any] | None) -> Any:
    """What transformers is told: that the files are read by `_Reader` below."""
    if config is None:
        raise ModelError("gptq is read from a checkpoint, not made here", fix="model.storage=nf4, or a GPTQ checkpoint")
    from transformers.quantizers import HfQuantizer
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    if READER not in AUTO_QUANTIZER_MAPPING:

        class _Config(QuantizationConfigMixin):
            def __init__(self, **values: Any) -> None:
                self.values = values
                self.quant_method = READER  # type: ignore[assignment]

            def to_dict(self) -> dict[str, Any]:
                return {**self.values, "quant_method": READER}

        class _Reader(HfQuantizer):
            """Puts empty layers of ours where the files hold quantised ones; transformers fills them by name."""

            def _process_model_before_weight_loading(self, model: Any, **more: Any) -> None:
                held = self.quantization_config.values  # type: ignore[attr-defined]
                put_layers(model, held, _quantised_paths(more["checkpoint_files"] or ()))

            def is_serializable(self) -> bool:
                return False

            @property
            def is_trainable(self) -> bool:
                return True

        register_quantization_config(READER)(_Config)
        register_quantizer(READER)(_Reader)
    values = {key: value for key, value in config.items() if key != "quant_method"}
    return {**values, "quant_method": READER}


READER = "tunesmith-gptq"


def _quantised_paths(files: Sequence[str]) -> dict[str, bool]:
    """Paths of the layers that the checkpoint's `files` hold quantised, and whether a bias lies there too."""
    from safetensors import safe_open

    keys: set[str] = set()
    for name in files:
        with safe_open(name, framework="pt") as file:
            keys |= set(file.keys())
    paths = {key.removesuffix(".qweight"): False for key in keys if key.endswith(".qweight")}
    missing = sorted(f"{path}.{name}" for path in paths for name in TENSORS if f"{path}.{name}" not in keys)
    if missing or not paths:
        raise ModelError(
            "the checkpoint calls itself GPTQ, but tensors are missing",
            found=", ".join(missing[:5]) or "no qweight",
            fix="fetch it again; one in another format than GPTQ's says so in quantization_config",
        )
    return {path: f"{path}.bias" in keys for path in paths}


def put_layers(model: nn.Module, config: Mapping[str, Any], paths: Mapping[str, bool]) -> None:
    """Empty GPTQ layers in the place of those at `paths` (True: with a bias), on their device (meta, while reading)."""
    bits, group = int(config["bits"]), int(config.get("group_size", -1))
    offset = FORMATS[config.get("checkpoint_format") or "gptq"]
    for path, biased in paths.items():
        old = model.get_submodule(path)
        if not isinstance(old, nn.Linear | Conv1D):
            what, fix = f"{path} is quantised in the files but no linear layer", "take the model's unquantised files"
            raise ModelError(what, found=type(old).__name__, fix=fix)
        out, in_ = old.weight.shape if isinstance(old, nn.Linear) else old.weight.shape[::-1]
        if in_ * bits % 32 or out * bits % 32:
            what, fix = f"{path} cannot be held in GPTQ's words of 32 bits", "take the model's unquantised files"
            raise ModelError(what, found=f"{out} x {in_}, {bits} bits", fix=fix)
        bias = torch.zeros(out, dtype=old.weight.dtype, device=old.weight.device) if biased else None
        new = GPTQLinear((out, in_), bits, group, offset, bias, old.weight.dtype, old.weight.device)
        new.turned = isinstance(old, Conv1D)
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new)


@torch.no_grad()
def taken(layer: nn.Module, dtype: torch.dtype) -> QuantisedLinear | None:
    """`layer` as read, multiplying in `dtype`; None where it is none of this storage's."""
    if not isinstance(layer, GPTQLinear):
        return None
    layer.like = torch.empty(0, dtype=dtype, device=layer.qweight.device)
    return layer


def hollow(linear: nn.Linear, storage: str, config: Mapping[str, Any] | None) -> QuantisedLinear:
    """`linear`, which stands on the meta device, as a checkpoint with this `quantization_config` holds it."""
    held = config or {}
    offset = FORMATS[held.get("checkpoint_format") or "gptq"]
    shape, dtype = (linear.weight.shape[0], linear.weight.shape[1]), linear.weight.dtype
    bits, group = int(held.get("bits", 4)), int(held.get("group_size", 128))
    return GPTQLinear(shape, bits, group, offset, linear.bias, dtype, "meta")
