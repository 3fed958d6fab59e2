"""What every adapter method lets one choose; each method's own record adds its letters."""

from __future__ import annotations

from tunesmith.settings import Settings


class AdapterSettings(Settings):
    targets: str | tuple[str, ...] = "all-linear"
    """all-linear, attention, mlp, a list of layer names, or "re:" and a regular expression over full paths."""
    last_blocks: int | None = None
    """Adapt only the last so many blocks."""
    train_in_full: tuple[str, ...] = ()
    """Modules trained in full beside the adapter: embeddings, norms, head, or names."""
