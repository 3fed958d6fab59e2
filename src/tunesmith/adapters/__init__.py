"""Adapter methods: one file and one line each."""

from tunesmith.adapters import dora, lora, lora_fa

METHODS = {
    "lora": lora,
    "dora": dora,
    "lora-fa": lora_fa,
}
