"""The base of every settings record: frozen, strict, and its field docstrings are its help texts."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen record that refuses unknown keys. Each record is declared once, in the file that uses it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True, validate_default=True
    )
