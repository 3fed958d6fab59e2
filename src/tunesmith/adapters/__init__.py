"""Adapter methods: one file and one line each."""

from tunesmith.adapters import lora

METHODS = {"lora": lora}
