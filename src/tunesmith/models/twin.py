"""How a model will run batches, before its weights are read: a small model of the same class and config, with numbers,
goes through the very trials that decide it when the real one is loaded (`attention.install`, `policy.probe`).

What decides is the code that a class runs and the choices of its config. So these stay, and only sizes shrink: two
heads of the width that they have, a block of each kind.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from tunesmith.adapters.attach import Switch
from tunesmith.adapters.heads import is_classifier
from tunesmith.ghost import numbers
from tunesmith.models import attention
from tunesmith.models.policy import probe
from tunesmith.models.tiny import randomise

VOCABULARY, MIDDLE, BLOCKS = 96, 64, 2


@dataclass(frozen=True)
class Ways:
    """What trying decides of a model."""

    attends: bool
    """Through our attention (`attention.install`)."""
    flat: bool
    """Batches run without padding (`policy.probe`)."""


def ways(model: PreTrainedModel) -> Ways:
    """Of `model`, which may have no numbers. Where no small one of its kind can be made, what transformers says of its
    attention has to do."""
    known: Any = model
    supported = bool(known._supports_attention_backend)
    looks_ahead = is_classifier(model) and not hasattr(model, "score")
    if not supported or looks_ahead:
        return Ways(supported, False)
    try:
        with numbers(), torch.random.fork_rng(devices=()):
            twin = _twin(model)
            attends = attention.install(twin)
            return Ways(attends, probe(twin, Switch())[0].flat)
    except Exception:  # of code that these sizes do not suit
        return Ways(True, True)


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    config: Any = copy.deepcopy(model.config)
    for holder in {id(one): one for one in (config, config.get_text_config())}.values():
        _shrink(holder)
    attention.register()
    with torch.device("cpu"):
        made: PreTrainedModel = type(model)._from_config(config, dtype=torch.float32, attn_implementation="eager")
    randomise(made, 0)
    return made.eval()


def _shrink(config: Any) -> None:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    grouped = (getattr(config, "num_key_value_heads", None) or heads) < heads
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    sizes: dict[str, Any] = {
        "hidden_size": 2 * width,
        "num_attention_heads": 2,
        "num_key_value_heads": 1 if grouped else 2,
        "vocab_size": VOCABULARY,
        "num_hidden_layers": max(BLOCKS, len(kinds)),
        "intermediate_size": MIDDLE,
        "moe_intermediate_size": MIDDLE,
        "shared_expert_intermediate_size": MIDDLE,
        **{name: None for name in ("pad_token_id", "bos_token_id", "eos_token_id") if hasattr(config, name)},
    }
    if kinds:
        sizes["layer_types"] = (kinds * BLOCKS)[: sizes["num_hidden_layers"]]
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if getattr(config, name, None):
            sizes[name] = min(getattr(config, name), 2 * getattr(config, "num_experts_per_tok", 2))
    for name, value in sizes.items():
        if hasattr(config, name) and getattr(config, name) is not None:
            setattr(config, name, value)
    if hasattr(config, "pad_token_id"):
        config.pad_token_id = 0
