"""Full: train every weight, or every weight of the last blocks, as a copy beside the frozen one.

Paper   plain fine-tuning, as in Howard and Ruder 2018, arXiv:1801.06146; of the last blocks alone: Lee et al. 2019,
        arXiv:1911.03090
When    there are many rows and memory for all of it; last_blocks where the lower part may stay as it is
Maths   y = module(x) with its parameters θ replaced by θ', cast to the frozen dtype for the product
Shapes  θ' [as θ], fp32 or wider
Init    θ' = θ: the first forward equals the base model
Merge   θ' itself
        Of a layer held in few bits: of its dequantised weight
Departs the copy belongs to the adapter, so that the base stays as it was and many adapters can share it. That takes
        memory: for each trained number the frozen one (2 or 4 bytes), the copy (4), its gradient (4) and AdamW's two
        moments (8). Of an embedding only the rows that the batch names are cast, never the table
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters.base import Adapter, Base, Stored
from tunesmith.adapters.settings import NONE, AdapterSettings
from tunesmith.errors import AdapterError
from tunesmith.quant.quantised import QuantisedLinear
from tunesmith.settings import Contradiction

PEFT_TYPE = "TUNESMITH_FULL"
"""PEFT has no such type and refuses the folder by this name."""


class Settings(AdapterSettings):
    whole: ClassVar[bool] = True

    method: Literal["full"] = "full"
    train_in_full: tuple[str, ...] = ("rest",)
    """What is trained beside the targets: rest (all that they leave; of last_blocks, what is in these blocks and the
    norm after them), embeddings, norms, head, or names. Where targets are chosen, nothing unless it is named."""

    @model_validator(mode="after")
    def _rest_of_everything(self) -> Self:
        if self.targets == "all-linear":
            return self
        if self.targets == NONE and self.last_blocks is not None:
            raise Contradiction("last_blocks", "has nothing to choose from: targets is none", "leave one of them out")
        if "train_in_full" not in self.model_fields_set:  # frozen, and not counted among what a person gave
            object.__setattr__(self, "train_in_full", ())
        elif "rest" in self.train_in_full:
            raise Contradiction(
                "train_in_full",
                "holds rest, which is all that the targets leave: to choose targets would change nothing",
                "take rest out, or leave targets at all-linear",
            )
        return self


class Full(Adapter):
    def __init__(self, base: Base) -> None:
        super().__init__()
        layer = base.layer.plain() if isinstance(base.layer, QuantisedLinear) else base.layer
        self.transposed = isinstance(layer, (Conv1D, nn.Embedding))
        for name, parameter in layer.named_parameters(recurse=False):
            if not parameter.is_floating_point():
                raise AdapterError(
                    f"a {type(layer).__name__} cannot be trained in full: its {name} is stored quantised",
                    found=str(parameter.dtype).removeprefix("torch."),
                    fix="a base in 16 or 32 bit, or a method that stands beside the weight (adapter.method: lora)",
                )
            wide = torch.promote_types(parameter.dtype, torch.float32)
            self.register_parameter(name, nn.Parameter(parameter.detach().to(wide, copy=True)))

    def tie(self, other: Full) -> None:
        """One weight from now on, that of `other`: embedding and head of a tied model."""
        self.register_parameter("weight", other.get_parameter("weight"))

    def forward(self, x: Tensor, base: Base, *more: Any, **named: Any) -> Tensor:
        layer, dtype = base.layer, base.dtype
        if isinstance(layer, QuantisedLinear):
            weight = self.get_parameter("weight").to(dtype)
            return F.linear(x, weight.t() if self.transposed else weight, self._bias(dtype))
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


def build(settings: AdapterSettings, base: Base, generator: torch.Generator | None = None) -> Full:
    """The copy starts as what it stands beside: nothing is drawn."""
    return Full(base)


def to_peft(settings: Settings) -> dict[str, Any]:
    return {"peft_type": PEFT_TYPE}


def from_peft(config: dict[str, Any]) -> dict[str, Any] | None:
    return {"method": "full"} if config.get("peft_type") == PEFT_TYPE else None


def is_lookup(layer: nn.Module) -> bool:
    """Whether an embedding hands out its rows as they are, or scaled; one that reckons its own positions does not."""
    return isinstance(layer, nn.Embedding) and (type(layer) is nn.Embedding or hasattr(layer, "embed_scale"))
