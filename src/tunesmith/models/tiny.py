"""Tiny random models of many architectures, for proofs that need no download.

Every parameter is randomised, norms and biases too: a model fresh from its config has biases of zero and norm gains
of one, which hides what forgets them. Logits of a soft-capped model reach beyond the cap. One generator, so the same
`arch` and `seed` give the same numbers in every process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tunesmith.errors import ModelError

VOCABULARY = 96
HIDDEN = 32
MIDDLE = 56
BLOCKS = 2

_LLAMA_LIKE = {"num_hidden_layers": BLOCKS, "hidden_size": HIDDEN, "intermediate_size": MIDDLE}
_LLAMA_LIKE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}


@dataclass(frozen=True)
class _Tiny:
    """One architecture: transformers' model type and the keys of its config that make it small."""

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    output_gain: float = 1.0
    """Multiplies the output head's weights, to push logits past a soft cap."""


ARCHITECTURES: dict[str, _Tiny] = {
    "llama": _Tiny("llama", {**_LLAMA_LIKE, "tie_word_embeddings": False}),
    "llama-tied": _Tiny(
        "llama", {**_LLAMA_LIKE, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}
    ),
    "mistral": _Tiny("mistral", {**_LLAMA_LIKE, "head_dim": 8, "sliding_window": 12}),
    "qwen2": _Tiny("qwen2", {**_LLAMA_LIKE, "tie_word_embeddings": True}),
    "qwen3": _Tiny("qwen3", {**_LLAMA_LIKE, "head_dim": 16}),
    "gemma2": _Tiny(
        "gemma2",
        {
            **_LLAMA_LIKE,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 12,
            "final_logit_softcapping": 5.0,
            "attn_logit_softcapping": 4.0,
        },
        output_gain=4.0,
    ),
    "gemma3": _Tiny(
        "gemma3_text",
        {
            **_LLAMA_LIKE,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi": _Tiny("phi", {**_LLAMA_LIKE, "partial_rotary_factor": 0.5}),
    "phi3": _Tiny("phi3", {**_LLAMA_LIKE, "pad_token_id": 0}),
    "falcon": _Tiny(
        "falcon",
        {
            "num_hidden_layers": BLOCKS,
            "hidden_size": HIDDEN,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "bias": True,
        },
    ),
    "bloom": _Tiny("bloom", {"n_layer": BLOCKS, "hidden_size": HIDDEN, "n_head": 4}),
    "gpt_neox": _Tiny("gpt_neox", {**{k: v for k, v in _LLAMA_LIKE.items() if k != "num_key_value_heads"}}),
    "stablelm": _Tiny("stablelm", {**_LLAMA_LIKE, "use_qkv_bias": True}),
    "opt": _Tiny(
        "opt",
        {
            "num_hidden_layers": BLOCKS,
            "hidden_size": HIDDEN,
            "word_embed_proj_dim": HIDDEN,
            "ffn_dim": MIDDLE,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
    "gpt2": _Tiny("gpt2", {"n_layer": BLOCKS, "n_embd": HIDDEN, "n_head": 4, "n_inner": MIDDLE, "n_positions": 128}),
    "mixtral": _Tiny("mixtral", {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": _Tiny(
        "qwen2_moe",
        {
            **_LLAMA_LIKE,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
}
"""Name -> how to make it small. Every name builds with `tiny(name)`."""

_DROPOUTS = (
    "attention_dropout",
    "hidden_dropout",
    "dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "activation_dropout",
)


def config(arch: str) -> Any:
    """The transformers config of `tiny(arch)`; dropouts off, special tokens inside the vocabulary."""
    if arch not in ARCHITECTURES:
        raise ModelError(
            f"no tiny model is called {arch}",
            expected=", ".join(ARCHITECTURES),
        )
    chosen = ARCHITECTURES[arch]
    keys: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, **chosen.config}
    made = AutoConfig.for_model(chosen.model_type, **keys)
    for name in _DROPOUTS:
        if hasattr(made, name):
            setattr(made, name, 0.0)
    return made


def tiny(
    arch: str, seed: int = 0, dtype: torch.dtype = torch.float32, attn_implementation: str = "eager"
) -> PreTrainedModel:
    """A random model of `arch` in evaluation mode, every parameter drawn anew from `seed`."""
    model = AutoModelForCausalLM.from_config(config(arch), attn_implementation=attn_implementation)
    randomise(model, seed)
    gain = ARCHITECTURES[arch].output_gain
    if gain != 1.0:
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(gain)
    return model.to(dtype).eval()


def randomise(model: nn.Module, seed: int) -> None:
    """Draw every parameter of `model`: matrices about N(0, 1/in), gains N(1, 0.3²), biases N(0, 0.1²).

    A vector called `weight` is a norm's gain, every other vector is a bias. Tied parameters are drawn once.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.empty(parameter.shape, dtype=torch.float32).normal_(generator=generator)
            if parameter.dim() >= 2:
                noise = noise / parameter.shape[-1] ** 0.5
            elif name.endswith("weight"):
                noise = 1.0 + 0.3 * noise
            else:
                noise = 0.1 * noise
            parameter.copy_(noise)
