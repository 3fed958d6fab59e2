"""What every objective's record is; each stands in its objective's own file."""

from __future__ import annotations

from tunesmith.settings import Settings


class ObjectiveSettings(Settings):
    """The `objective` section of a recipe: `kind` says which record it is."""

    @property
    def answer_tokens(self) -> int:
        """How many tokens the model may write behind a row."""
        return 0
