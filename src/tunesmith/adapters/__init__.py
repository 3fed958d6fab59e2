"""Adapter methods: one file and one line each."""

from tunesmith.adapters import (
    bottleneck,
    delta_lora,
    dora,
    full,
    ia3,
    llama_adapter,
    lora,
    lora_fa,
    prefix,
    prompt,
    relora,
    vera,
)

METHODS = {
    "lora": lora,
    "dora": dora,
    "lora-fa": lora_fa,
    "vera": vera,
    "ia3": ia3,
    "delta-lora": delta_lora,
    "relora": relora,
    "bottleneck": bottleneck,
    "prompt": prompt,
    "prefix": prefix,
    "llama-adapter": llama_adapter,
    "full": full,
}
