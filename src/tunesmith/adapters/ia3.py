"""(IA)³: learn one factor for each key and value, and one for each activation inside the MLP; the weights stay frozen.

Paper   Liu et al. 2022, arXiv:2205.05638, section 3.3
When    rows are few and next to nothing may change: three vectors in each block, which merge into the weights
Maths   y = l (W x + b)      on keys and values (the paper's l_k, l_v)
        y = W (l x) + b      on a feed-forward layer: the MLP's last matrix (l_ff)      l multiplies element by element
Shapes  x [..., in]   W [out, in]   l [out, 1], or [1, in] on a feed-forward layer
Init    l = 1: the first forward equals the base model
Merge   W' = diag(l) W, b' = l b;  on a feed-forward layer W' = W diag(l), b' = b
Departs a matrix that makes queries, keys and values at once has factors on all its outputs, as in PEFT. Beside an
        embedding, which the paper does not adapt, l is of the width, or of the tokens where it is called feed-forward
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from tunesmith.adapters.base import Adapter, Base, Stored
from tunesmith.adapters.settings import KINDS, AdapterSettings, patterns_compile
from tunesmith.adapters.targets import Anatomy, matching
from tunesmith.errors import AdapterError
from tunesmith.kernels.gain import gained


class Settings(AdapterSettings):
    method: Literal["ia3"] = "ia3"
    targets: str | tuple[str, ...] = ("key-value", "mlp-down")
    """As for every method; by default the keys, the values and the last matrix of each MLP."""
    feedforward: str | tuple[str, ...] = "mlp-down"
    """Which of the targets have the factor on what enters them instead of what leaves them; named as targets are."""

    @model_validator(mode="after")
    def _feedforward_readable(self) -> Self:
        patterns_compile("feedforward", self.feedforward)
        return self


class IA3(Adapter):
    def __init__(self, settings: Settings, base: Base) -> None:
        super().__init__()
        self.is_embedding = base.is_embedding
        self.changes_input = is_feedforward(settings)
        shape = (1, base.in_features) if self.changes_input else (base.out_features, 1)
        self.l = nn.Parameter(torch.ones(shape, device=base.device))

    def forward(self, x: Tensor, base: Base, *more: Any, **named: Any) -> Tensor:
        if not self.changes_input:
            return gained(base.output(x), self.l.flatten())
        if self.is_embedding:
            y = base.output(x)
            return (y * F.embedding(x, self.l.T)).to(y.dtype)
        return base.output(gained(x, self.l.flatten()))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        wide = torch.promote_types(weight.dtype, self.l.dtype)
        factor = self.l.to(wide)
        merged = (weight.to(wide) * factor).to(weight.dtype)
        if bias is None or self.changes_input:
            return merged, bias
        return merged, (bias.to(wide) * factor.flatten()).to(bias.dtype)

    def stored(self) -> dict[str, Stored]:
        return {"ia3_l": Stored([self.l])}


def is_feedforward(settings: Settings) -> bool:
    """Of one layer's own settings, as `for_layers` made them: its path stands in `feedforward`, or nothing does."""
    return isinstance(settings.feedforward, tuple) and bool(settings.feedforward)


def for_layers(settings: Settings, body: Anatomy, paths: Sequence[str]) -> dict[str, Settings]:
    names = (settings.feedforward,) if isinstance(settings.feedforward, str) else settings.feedforward
    inner: set[str] = set()
    for name in names:
        found = set(matching(body, name))
        if name not in KINDS and not name.startswith("re:") and not found & set(paths):
            raise AdapterError(
                f"adapter.feedforward names {name}, which is none of the adapted layers",
                expected=", ".join(dict.fromkeys(path.rpartition(".")[2] for path in paths)),
            )
        inner |= found
    return {path: settings.model_copy(update={"feedforward": (path,) if path in inner else ()}) for path in paths}


def build(settings: Settings, base: Base, generator: torch.Generator | None = None) -> IA3:
    return IA3(settings, base)


def to_peft(settings: Settings) -> dict[str, Any]:
    return {"peft_type": "IA3", "feedforward_modules": []}


def peft_layers(layer_settings: Mapping[str, Settings]) -> dict[str, Any]:
    """PEFT takes ends of paths for names, and wants each feed-forward name among the targets: whole paths are safe."""
    inner = [path for path, own in layer_settings.items() if is_feedforward(own)]
    return {"target_modules": list(layer_settings), "feedforward_modules": inner}


def from_peft(config: dict[str, Any]) -> dict[str, Any] | None:
    if config.get("peft_type") != "IA3":
        return None
    names = config.get("feedforward_modules") or []
    pattern = names if isinstance(names, str) else f".*({'|'.join(map(re.escape, names))})" if names else None
    return {"method": "ia3", "feedforward": () if pattern is None else f"re:{pattern}"}
