"""The `objective` section of a recipe: which loss; one record per objective joins the union as it arrives."""

from __future__ import annotations

from typing import Literal

from tunesmith.settings import Settings


class SFTSettings(Settings):
    kind: Literal["sft"] = "sft"
    """Supervised fine-tuning: cross entropy on the learned tokens."""
