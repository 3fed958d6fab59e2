"""Of a LLaMA-Factory file: the model, how its weights are held, its tokens and its chat template."""

from __future__ import annotations

from tunesmith.dialects.base import Said, there
from tunesmith.dialects.llama_factory.templates import template


def names(said: Said, key: str) -> list[str]:
    """Names parted by commas, or a list of them."""
    return [name.strip() for text in said.items(key, str) for name in text.split(",") if name.strip()]


def model(said: Said, stage: str) -> None:
    said.put("model.name", said.take("model_name_or_path", str, ""), "model_name_or_path")
    revision = said.take("model_revision", str, "main")
    if revision != "main":
        said.put("model.revision", revision, "model_revision")
    elif said.has("model_revision"):
        said.carry("model_revision", "the default branch, as it is anyway")
    _storage(said)
    _dtype(said)
    _recompute(said)
    added = {key: names(said, key) for key in ("add_tokens", "add_special_tokens") if said.has(key)}
    if added:
        said.put("model.add_tokens", [token for tokens in added.values() for token in tokens], *added)
    template(said, stage)


def _storage(said: Said) -> None:
    bits, kind = said.take("quantization_bit", int), said.take("finetuning_type", str, "lora")
    own = ("quantization_method", "quantization_type", "double_quantization")
    if bits is None:
        for key in own:
            said.raw(key)
            said.idle(key, "quantization_bit is not given")
        return
    how = said.choose("quantization_method", ("bnb", "bitsandbytes"), "bnb")
    numbers, double = said.choose("quantization_type", ("nf4",), "nf4"), said.take("double_quantization", bool, True)
    if kind in ("full", "freeze"):
        said.refuse("quantization_bit", f"stands beside finetuning_type {kind}", "take finetuning_type: lora")
    if bits == 8:
        said.put("model.storage", "int8", "quantization_bit", *there(said, "quantization_method"))
        for key in own[1:]:
            said.idle(key, "of 4 bits alone")
    elif bits == 4:
        storage = f"{numbers}-double" if double else numbers
        said.put("model.storage", storage, "quantization_bit", *(key for key in own if said.has(key)))
    else:
        fix = f"write it so: quantization_bit: {4 if bits < 8 else 8}; or take it out, for a base of 16 bits"
        said.refuse("quantization_bit", f"cannot be {bits} with {how}", fix, expected="4 or 8")


def _dtype(said: Said) -> None:
    brain = [key for key in ("bf16", "pure_bf16") if said.take(key, bool, False)]
    half = said.take("fp16", bool, False)
    if brain and half:
        said.refuse("fp16", f"stands beside {brain[0]}", "take one of them out")
    elif brain:
        said.put("model.dtype", "bfloat16", *brain)
    elif half:
        said.put("model.dtype", "float16", "fp16")
    for key in ("bf16", "pure_bf16", "fp16"):
        if said.has(key) and not said.take(key, bool):
            said.idle(key, "off")
    if "pure_bf16" in brain:
        said.note("pure_bf16: what is trained is held in float32 all the same, which is finer")


def _recompute(said: Said) -> None:
    off = said.take("disable_gradient_checkpointing", bool, False)
    own = [key for key in ("gradient_checkpointing", "activation_checkpointing") if said.take(key, bool, False)]
    said.put("train.recompute", bool(own) or not off, *own, *there(said, "disable_gradient_checkpointing"))
    for key in ("gradient_checkpointing", "activation_checkpointing"):
        if key not in own:
            said.idle(key, "disable_gradient_checkpointing turns it off")
