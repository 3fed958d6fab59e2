"""Axolotl's YAML, as its examples and the blogs about it write it.

What its keys mean: docs.axolotl.ai (config reference, dataset formats). Where it has a default that differs from ours,
the recipe says so: one epoch, batches of one row, the last checkpoint as the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.dialects.axolotl.adapter import adapter
from tunesmith.dialects.axolotl.data import datasets
from tunesmith.dialects.axolotl.keys import KEYS as KEYS
from tunesmith.dialects.axolotl.model import model
from tunesmith.dialects.axolotl.objective import objective
from tunesmith.dialects.axolotl.templates import template
from tunesmith.dialects.axolotl.training import steps, when
from tunesmith.dialects.axolotl.watching import output
from tunesmith.dialects.base import Said

CALLED = "Axolotl"


def is_mine(values: Mapping[str, Any]) -> bool:
    return "base_model" in values


def translate(said: Said) -> None:
    if not said.has("base_model"):
        said.refuse(
            "base_model", "is missing", "name the model: base_model: OWNER/NAME", expected="a folder or a hub id"
        )
    said.put("model.name", said.take("base_model", str, ""), "base_model")
    model(said)
    template(said, datasets(said))
    adapter(said)
    objective(said)
    steps(said)
    when(said)
    output(said)
