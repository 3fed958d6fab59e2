"""What every adapter method lets one choose; each method's own record adds its letters."""

from __future__ import annotations

import re
from typing import ClassVar, Self

from pydantic import PositiveInt, model_validator

from tunesmith.settings import Contradiction, Settings

KINDS = ("all-linear", "attention", "mlp", "key-value", "mlp-down", "outputs")
"""Words for `targets`."""
NONE = "none"
"""In place of targets: no matrix is adapted, and what `train_in_full` names is all that learns."""


class AdapterSettings(Settings):
    whole: ClassVar[bool] = False
    """The method trains copies of whole weights: a tied table is one copy, on both sides."""

    targets: str | tuple[str, ...] = "all-linear"
    """all-linear, attention, mlp, key-value, mlp-down, outputs (mlp-down and the attention's own), a list of such words
    or of layer names, or "re:" and a regular expression over full paths. Of method full also none: what train_in_full
    names alone."""
    last_blocks: PositiveInt | None = None
    """Adapt only the last so many blocks."""
    train_in_full: tuple[str, ...] = ()
    """Modules trained in full beside the adapter: embeddings, norms, head, rest (all the targets leave), names, or
    "re:" and a regular expression over full paths."""

    @property
    def virtual_tokens(self) -> int:
        """How many positions before each document the method takes."""
        return 0

    @model_validator(mode="after")
    def _targets_readable(self) -> Self:
        if not self.targets or (not isinstance(self.targets, str) and "" in self.targets):
            raise Contradiction("targets", "is empty", "name layers, or say all-linear")
        patterns_compile("targets", self.targets)
        patterns_compile("train_in_full", self.train_in_full)
        return self


def patterns_compile(key: str, targets: str | tuple[str, ...]) -> None:
    """Refuse a broken regular expression behind "re:"."""
    for target in (targets,) if isinstance(targets, str) else targets:
        if target.startswith("re:"):
            try:
                re.compile(target[3:])
            except re.error as error:
                raise Contradiction(key, f"holds a broken regular expression: {error}") from error
