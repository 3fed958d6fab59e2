"""LLaMA-Adapter: learned tokens that attention reads beside its own, through a gate that begins shut.

Paper   Zhang et al. 2023, arXiv:2303.16199, eq. 4-8; as PEFT's adaption prompt has it
When    something that stands before documents is wanted, and it has to begin as the base exactly
Maths   in each of the last blocks, y = softmax(s q K^T) V + g softmax(s q Kp^T) Vp      Kp = Wk P, Vp = Wv P
        Wk, Wv the frozen projections of the block, s its scale; q rotated, Kp not
Shapes  P [1, p, hidden]   g [1]   q [heads, tokens, width]   Kp, Vp [kv heads, p, width]
Init    P ~ N(0, 1), g = 0: the first forward equals the base model
Merge   cannot be: P stands in no weight. Serve it as an adapter
Departs one gate for a block, as in PEFT; the authors' code has one for each head. Both parts go through the output
        projection as one sum: PEFT adds a bias of that projection twice, where there is one. Needs blocks with k_proj
        and v_proj; where keys are normed (Qwen 3), Kp is too. In the first step the gate alone learns: it is what P is
        multiplied by
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tunesmith.adapters.attach import Slot
from tunesmith.adapters.base import Base, Stored
from tunesmith.adapters.targets import Anatomy
from tunesmith.adapters.virtual import UNMERGEABLE, Virtual, VirtualSettings
from tunesmith.errors import AdapterError
from tunesmith.quant.dense import like

__all__ = ["UNMERGEABLE", "Settings", "build", "from_peft", "to_peft"]


class Settings(VirtualSettings):
    method: Literal["llama-adapter"] = "llama-adapter"
    num_tokens: int = Field(10, gt=0)
    """Learned tokens in each block. They take no position."""

    @property
    def virtual_tokens(self) -> int:
        return 0

    @property
    def meaningless(self) -> tuple[str, ...]:
        return ("train_in_full",)


class LLaMAAdapter(Virtual):
    neutral = True

    def __init__(
        self, settings: Settings, attention: dict[str, nn.Module], hidden: int, generator: torch.Generator | None
    ) -> None:
        """`attention`: the attention module of each adapted block by its path."""
        super().__init__(0)
        self.paths = {int(module.layer_idx): path for path, module in attention.items()}  # type: ignore[arg-type]
        for layer, module in zip(self.paths, attention.values(), strict=True):
            keys = module.k_proj
            device = like(keys.layer if isinstance(keys, Slot) else keys).device  # type: ignore[arg-type]
            P = torch.zeros(1, settings.num_tokens, hidden)
            if generator is not None:
                P.normal_(generator=generator)
            self.register_parameter(f"P{layer}", nn.Parameter(P.to(device)))
            self.register_parameter(f"g{layer}", nn.Parameter(torch.zeros(1, device=device)))

    def gated(self, module: Any) -> tuple[Tensor, Tensor, Tensor] | None:
        layer = module.layer_idx
        if layer not in self.paths:
            return None
        P = self.get_parameter(f"P{layer}")[0]
        frozen = [part.layer if isinstance(part, Slot) else part for part in (module.k_proj, module.v_proj)]
        keys, values = (part(P.to(like(part).dtype)).view(len(P), -1, module.head_dim) for part in frozen)
        norm = getattr(module, "k_norm", None)
        if norm is not None:
            keys = norm.layer(keys) if isinstance(norm, Slot) else norm(keys)
        return keys.transpose(0, 1), values.transpose(0, 1), self.get_parameter(f"g{layer}")

    def stored(self) -> dict[str, Stored]:
        return {
            f"base_model.model.{path}.adaption_{name}": Stored([self.get_parameter(f"{letter}{layer}")])
            for layer, path in self.paths.items()
            for name, letter in (("prompt", "P"), ("gate", "g"))
        }

    def peft_fields(self) -> dict[str, Any]:
        leaves = {path.rpartition(".")[2] for path in self.paths.values()}
        return {"adapter_layers": len(self.paths), "target_modules": leaves.pop()}


def build(settings: Settings, base: Base, generator: torch.Generator | None, body: Anatomy) -> LLaMAAdapter:
    blocks = range(len(body.blocks))[-settings.last_blocks :] if settings.last_blocks else range(len(body.blocks))
    model: Any = body.modules[""]
    needed = ("k_proj", "v_proj", "head_dim", "layer_idx")
    attention = {
        path: module
        for path, module in body.modules.items()
        if body.block_of(path) in blocks and all(hasattr(module, name) for name in needed)
    }
    if len(attention) != len(blocks) or not model._supports_attention_backend:
        raise AdapterError(
            f"LLaMA-Adapter does not know the attention of {type(model).__name__}",
            found=f"{len(attention)} modules with k_proj, v_proj and head_dim in {len(blocks)} blocks",
            expected="one in each block, of a model whose attention can be chosen",
            fix="choose another method, such as prefix or lora",
        )
    return LLaMAAdapter(settings, attention, model.config.get_text_config().hidden_size, generator)


def to_peft(settings: Settings) -> dict[str, Any]:
    return {"peft_type": "ADAPTION_PROMPT", "adapter_len": settings.num_tokens, "adapter_layers": settings.last_blocks}


def from_peft(config: dict[str, Any]) -> dict[str, Any] | None:
    if config.get("peft_type") != "ADAPTION_PROMPT":
        return None
    return {
        "method": "llama-adapter",
        "num_tokens": config["adapter_len"],
        "last_blocks": config["adapter_layers"],
    }
