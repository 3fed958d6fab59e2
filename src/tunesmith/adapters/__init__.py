"""Adapter methods: one file and one line each."""

from tunesmith.adapters import dora, full, lora, lora_fa, vera

METHODS = {
    "lora": lora,
    "dora": dora,
    "lora-fa": lora_fa,
    "vera": vera,
    "full": full,
}
