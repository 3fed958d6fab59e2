"""What every adapter method lets one choose; each method's own record adds its letters."""

from __future__ import annotations

import re
from typing import Self

from pydantic import PositiveInt, model_validator

from tunesmith.settings import Contradiction, Settings


class AdapterSettings(Settings):
    targets: str | tuple[str, ...] = "all-linear"
    """all-linear, attention, mlp, outputs (of both), mlp-outputs, names, or "re:" and a regular expression."""
    last_blocks: PositiveInt | None = None
    """Adapt only the last so many blocks."""
    train_in_full: tuple[str, ...] = ()
    """Modules trained in full beside the adapter: embeddings, norms, head, or names."""

    @property
    def virtual_tokens(self) -> int:
        """How many positions before each document the method takes."""
        return 0

    @model_validator(mode="after")
    def _targets_readable(self) -> Self:
        if not self.targets or (not isinstance(self.targets, str) and "" in self.targets):
            raise Contradiction("targets", "is empty", "name layers, or say all-linear")
        for target in (self.targets,) if isinstance(self.targets, str) else self.targets:
            if target.startswith("re:"):
                try:
                    re.compile(target[3:])
                except re.error as error:
                    raise Contradiction("targets", f"holds a broken regular expression: {error}") from error
        return self
