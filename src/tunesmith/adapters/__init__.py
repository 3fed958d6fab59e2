"""Adapter methods: one file and one line each."""

from tunesmith.adapters import bottleneck, dora, llama_adapter, lora, lora_fa, prefix, prompt, vera

METHODS = {
    "lora": lora,
    "dora": dora,
    "lora-fa": lora_fa,
    "vera": vera,
    "bottleneck": bottleneck,
    "prompt": prompt,
    "prefix": prefix,
    "llama-adapter": llama_adapter,
}
