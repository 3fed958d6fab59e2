"""Adapter methods: one file and one line each."""

from tunesmith.adapters import delta_lora, dora, ia3, lora, lora_fa, relora, vera

METHODS = {
    "lora": lora,
    "dora": dora,
    "lora-fa": lora_fa,
    "vera": vera,
    "ia3": ia3,
    "delta-lora": delta_lora,
    "relora": relora,
}
