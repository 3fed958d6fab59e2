"""Prefix tuning: learned keys and values before each document, in every layer.

Paper   Li & Liang 2021, arXiv:2101.00190, eq. 3; without the network: P-tuning v2, Liu et al. 2021, arXiv:2110.07602
When    as prompt tuning, where that learns too little: every layer gets keys and values of its own
Maths   in layer l, a token attends to [K_l; k], [V_l; v] in place of k, v     K_l, V_l: the layer's part of P
        with projection: P = W2 tanh(W1 E + b1) + b2 while training; a file holds P
Shapes  P [p, layers * 2 * kv heads * head width], for each layer keys, then values   E [p, kv heads * head width]
        W1 [m, kv heads * head width]   W2 [layers * 2 * kv heads * head width, m]
Init    the keys and values that the model computes for tokens drawn from the vocabulary, or for a text: it starts as
        the base that has read these before the document (section 7.4 of the paper), not as the base. With projection:
        E ~ N(0, 1), W1 and W2 uniform within 1/sqrt(fan-in)
Merge   cannot be: P stands in no weight. Serve it as an adapter
Departs keys are taken as rotated already, as in PEFT, and tokens of the document go on from position p. Training that
        goes on from a file learns P itself
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn
from transformers import DynamicCache

from tunesmith.adapters.base import Base, Stored
from tunesmith.adapters.targets import Anatomy
from tunesmith.adapters.virtual import UNMERGEABLE, Virtual, VirtualSettings
from tunesmith.errors import AdapterError
from tunesmith.settings import Contradiction

__all__ = ["UNMERGEABLE", "Settings", "build", "from_peft", "to_peft"]


class Settings(VirtualSettings):
    method: Literal["prefix"] = "prefix"
    init_text: str | None = None
    """Begin as what the model computes for this text, repeated or cut to num_tokens; null: for tokens drawn anyhow."""
    projection: PositiveInt | None = None
    """Width of a network that makes keys and values while training; null: they are learned themselves."""

    @model_validator(mode="after")
    def _text_or_network(self) -> Self:
        if self.init_text is not None and self.projection is not None:
            raise Contradiction(
                "init_text", "has no meaning with a projection, which starts at random", "leave out one"
            )
        return self


class Prefix(Virtual):
    def __init__(
        self, settings: Settings, shape: tuple[int, int, int], device: torch.device, generator: torch.Generator | None
    ) -> None:
        """`shape`: layers, kv heads, width of a head. `generator` None: zeros, to be filled from a file."""
        super().__init__(settings.num_tokens)
        self.shape = shape
        layers, heads, width = shape
        self.has_network = settings.projection is not None and generator is not None
        if not self.has_network:
            self.P = nn.Parameter(torch.zeros(settings.num_tokens, layers * 2 * heads * width, device=device))
            return
        assert settings.projection is not None
        m, token = settings.projection, heads * width
        self.E = nn.Parameter(torch.randn(settings.num_tokens, token, generator=generator).to(device))
        for name, out, in_ in (("1", m, token), ("2", layers * 2 * token, m)):
            bound = 1.0 / math.sqrt(in_)
            for letter, size in (("W", (out, in_)), ("b", (out,))):
                drawn = torch.empty(size).uniform_(-bound, bound, generator=generator)
                self.register_parameter(letter + name, nn.Parameter(drawn.to(device)))

    def table(self) -> Tensor:
        """P [p, layers * 2 * kv heads * head width]."""
        if not self.has_network:
            return self.P
        hidden = torch.tanh(nn.functional.linear(self.E, self.get_parameter("W1"), self.get_parameter("b1")))
        return nn.functional.linear(hidden, self.get_parameter("W2"), self.get_parameter("b2"))

    def keys_values(self) -> Sequence[tuple[Tensor, Tensor]]:
        layers, heads, width = self.shape
        each = self.table().view(self.num_tokens, 2 * layers, heads, width).permute(1, 2, 0, 3)
        return [(each[2 * layer], each[2 * layer + 1]) for layer in range(layers)]

    @torch.no_grad()
    def begin_as(self, token_ids: Sequence[int], base: Base, model: nn.Module) -> None:
        """P becomes what `model` computes for these tokens; repeated or cut to its length."""
        repeated = [token_ids[i % len(token_ids)] for i in range(self.num_tokens)]
        each = [part[0] for pair in _computed(model, repeated, base.device) for part in pair]
        self.P.copy_(torch.stack(each).permute(2, 0, 1, 3).reshape(self.num_tokens, -1))

    def stored(self) -> dict[str, Stored]:
        return {"prompt_embeddings": Stored([self.table()])}


@torch.no_grad()
def _computed(model: nn.Module, token_ids: Sequence[int], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Keys and values [1, K, n, D] of each layer of `model`."""
    cache, training = DynamicCache(), model.training
    model.eval()  # recomputation, which keeps no cache, is of training alone
    try:
        model(input_ids=torch.tensor([token_ids], device=device), past_key_values=cache, use_cache=True)
    finally:
        model.train(training)
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers if getattr(layer, "keys", None) is not None]


def build(settings: Settings, base: Base, generator: torch.Generator | None, body: Anatomy) -> Prefix:
    model = body.modules[""]
    computed = _computed(model, [0], base.device)
    found = {tuple(part.shape) for pair in computed for part in pair}
    if len(found) != 1:
        raise AdapterError(
            f"prefix tuning needs layers whose keys and values are all of one shape, {type(model).__name__} has others",
            found=", ".join(map(str, sorted(found))) or "no keys and values",
            fix="choose another method, such as prompt or lora",
        )
    _, heads, _, width = found.pop()
    adapter = Prefix(settings, (len(computed), heads, width), base.device, generator)
    if generator is not None and not adapter.has_network and settings.init_text is None:
        drawn = torch.randint(base.in_features, (settings.num_tokens,), generator=generator).tolist()
        adapter.begin_as(drawn, base, model)
    return adapter


def to_peft(settings: Settings) -> dict[str, Any]:
    """Of a projection PEFT's files keep what it makes, and say that there is none."""
    return {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": settings.num_tokens, "prefix_projection": False}


def from_peft(config: dict[str, Any]) -> dict[str, Any] | None:
    if config.get("peft_type") != "PREFIX_TUNING":
        return None
    return {"method": "prefix", "num_tokens": config["num_virtual_tokens"]}
