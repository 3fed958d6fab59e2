"""Bottleneck: a small network on what a sub-layer puts out, before it is added to the residual stream.

Paper   Houlsby et al. 2019, arXiv:1902.00751, figure 2; behind the MLP alone: Pfeiffer et al. 2020, arXiv:2005.00247
When    what is to be learned is no linear change, or to compare with. It is served as an adapter, never merged
Maths   y = h + U f(D h + d) + u      h = W x + b, the output of the layer; f the activation
Shapes  x [..., in]   h, y [..., out]   D [r, out]   d [r]   U [out, r]   u [out]
Init    D ~ U(-1/sqrt(out), 1/sqrt(out)), d = 0, U = 0, u = 0: the first forward equals the base model
Merge   cannot be: f is not linear, so that no weight computes the same. Serve it as an adapter
Departs the paper starts near the base, with small numbers in U as well; here U = 0, exactly at it. The paper trains the
        norms too: that is train_in_full: [norms]. It stands on the output projection: where a model norms that output
        before it adds it (Gemma 2), the norm comes after. PEFT does not know this method, its files are our own
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NoReturn

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tunesmith.adapters.base import Adapter, Base, Stored
from tunesmith.adapters.settings import AdapterSettings
from tunesmith.errors import AdapterError

PEFT_TYPE = "TUNESMITH_BOTTLENECK"
"""PEFT has no such type, and refuses it by name."""
UNMERGEABLE = "the network of a bottleneck adapter is not linear: no weight computes the same"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class Settings(AdapterSettings):
    method: Literal["bottleneck"] = "bottleneck"
    targets: str | tuple[str, ...] = "outputs"
    """outputs: behind attention and MLP (Houlsby); mlp-down: behind the MLP (Pfeiffer); or as for every method."""
    r: int = Field(64, gt=0)
    """Width of the bottleneck."""
    activation: Literal["gelu", "relu", "silu", "tanh"] = "gelu"
    """What stands between the way down and the way up."""


class Bottleneck(Adapter):
    mergeable = False

    def __init__(self, settings: Settings, base: Base, generator: torch.Generator | None) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[settings.activation]
        D = torch.zeros(settings.r, base.out_features)
        if generator is not None:
            bound = 1.0 / math.sqrt(base.out_features)
            D.uniform_(-bound, bound, generator=generator)
        self.D = nn.Parameter(D.to(base.device))
        self.d = nn.Parameter(torch.zeros(settings.r, device=base.device))
        self.U = nn.Parameter(torch.zeros(base.out_features, settings.r, device=base.device))
        self.u = nn.Parameter(torch.zeros(base.out_features, device=base.device))

    def forward(self, x: Tensor, base: Base, *more: Any, **named: Any) -> Tensor:
        h = base.output(x)
        D, d, U, u = (tensor.to(h.dtype) for tensor in (self.D, self.d, self.U, self.u))
        return h + F.linear(self.activation(F.linear(h, D, d)), U, u)

    def merged(self, weight: Tensor, bias: Tensor | None) -> NoReturn:
        raise AdapterError(UNMERGEABLE, fix="serve it as an adapter")

    def stored(self) -> dict[str, Stored]:
        return {
            "bottleneck_down.weight": Stored([self.D]),
            "bottleneck_down.bias": Stored([self.d]),
            "bottleneck_up.weight": Stored([self.U]),
            "bottleneck_up.bias": Stored([self.u]),
        }


def build(settings: Settings, base: Base, generator: torch.Generator | None = None) -> Bottleneck:
    return Bottleneck(settings, base, generator)


def to_peft(settings: Settings) -> dict[str, Any]:
    """A type of our own: PEFT refuses it by name."""
    return {"peft_type": PEFT_TYPE, "r": settings.r, "activation": settings.activation}


def from_peft(config: dict[str, Any]) -> dict[str, Any] | None:
    if config.get("peft_type") != PEFT_TYPE:
        return None
    return {"method": "bottleneck", "r": config["r"], "activation": config["activation"]}
