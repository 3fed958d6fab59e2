"""The `data` section of a recipe."""

from __future__ import annotations

from typing import Literal

from tunesmith.settings import Settings


class TemplateFormat(Settings):
    """A row turned into a conversation by Jinja over its own columns."""

    prompt: str
    """Jinja text of the user turn, for example "Context: {{ context }}\\nQuestion: {{ question }}"."""
    answer: str
    """Jinja text of the assistant turn: the only part that is learned."""
    system: str | None = None
    """Jinja text of a system turn."""


class HeldOut(Settings):
    """Rows kept away from training. Give exactly one of the four."""

    share: float | None = None
    """Between 0 and 1."""
    count: int | None = None
    """Number of rows."""
    file: str | None = None
    """A file (or hub id) of its own."""
    key: str | None = None
    """A column: whole groups of equal value go to one side, about a tenth of the rows (or `share`, if given beside it)."""


class DataSettings(Settings):
    train: str
    """A JSONL, JSON, CSV, Parquet or Arrow file, a folder of such files, or a hub id."""
    split: str = "train"
    """Which split of a hub data set."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    format: Literal["auto", "text", "messages", "prompt-completion", "alpaca"] | TemplateFormat = "auto"
    """How a row is read; auto recognises it by its columns and says what it took it for."""
    columns: dict[str, str] = {}
    """Renames columns before the format reads them: {wanted: yours}."""
    held_out: float | int | str | HeldOut | None = None
    """Share (0.1), count (200), file ("valid.jsonl"), or {key: column}."""
    max_length: int = 2048
    """Longest row in tokens."""
    overlong: Literal["drop", "truncate", "error"] = "drop"
    """What to do with a longer row; drops and truncations are counted and shown."""
    system_turn: Literal["keep", "into-user"] = "keep"
    """For templates without a system role: put its text in front of the first user turn."""
    limit: int | None = None
    """Read only the first so many rows."""
    shuffle: bool = True
    """Visit the rows in a new seeded order every epoch."""
